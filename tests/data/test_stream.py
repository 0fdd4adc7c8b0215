"""The stream: every sample in its turn, ranks share nothing, and two numbers are enough to go on from anywhere."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from ra_blip.data.stream import BLOCKS, Mixture, Plan, in_blocks
from ra_blip.errors import ConfigError


@dataclasses.dataclass
class Numbers:
    """Samples that say which they are, and what their generator drew."""

    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: np.random.Generator) -> tuple[str, int, int]:
        return self.name, index, int(rng.integers(1 << 30))

    def texts(self) -> Iterator[str]:
        return (f"{self.name}{n}" for n in range(self.count))


def epoch_of(plan: Plan, epoch: int, rank: int = 0) -> np.ndarray:
    return np.concatenate([plan.at(epoch, position, rank) for position in range(plan.batches)])


@pytest.mark.parametrize("count", [24, 1024, 6_000])
def test_an_epoch_is_every_sample_once(count: int) -> None:
    plan = Plan([count], batch=8, window=7)
    assert plan.batches == count // 8
    orders = [epoch_of(plan, epoch)[:, 1].tolist() for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(count))
    assert orders[0] != orders[1] != orders[2]
    assert epoch_of(Plan([count], batch=8, window=7, seed=1), 0)[:, 1].tolist() != orders[0]


def test_no_sample_is_lost_where_batches_do_not_divide() -> None:
    plan = Plan([103], batch=4, world=2, window=5)  # 12 batches of 8 an epoch, 7 samples over
    drawn = np.concatenate([epoch_of(plan, epoch, rank) for epoch in range(103) for rank in range(2)])
    assert len(drawn) == 103 * 12 * 8
    counts = collections.Counter(drawn[:, 1].tolist())
    assert set(counts.values()) == {12 * 8}, "what an epoch leaves over opens the next one"


def test_ranks_share_no_sample_and_have_equally_many_batches() -> None:
    whole = Plan([400], batch=20)
    for world in (2, 5):
        plan = Plan([400], batch=20 // world, world=world)
        assert plan.batches == whole.batches == 20
        for position in range(20):
            parts = [plan.at(0, position, rank) for rank in range(world)]
            assert {len(part) for part in parts} == {20 // world}
            together = np.concatenate(parts)[:, 1]
            assert len(set(together.tolist())) == 20
            assert sorted(together) == sorted(whole.at(0, position)[:, 1]), "the same global batches at any world size"


def test_a_batch_follows_from_seed_epoch_and_position_alone() -> None:
    sizes, lengths = [300, 50], [np.arange(300), np.arange(50)]
    plan = Plan(sizes, batch=4, world=2, window=6, lengths=lengths)
    straight = {(e, p): plan.at(e, p, 1).tolist() for e in range(3) for p in range(plan.batches)}
    for epoch, position in np.random.default_rng(0).permutation(list(straight)).tolist():
        fresh = Plan(sizes, batch=4, world=2, window=6, lengths=lengths)
        assert fresh.at(epoch, position, 1).tolist() == straight[epoch, position]


def test_sources_are_drawn_by_the_square_roots_of_their_sizes() -> None:
    plan = Plan([6400, 400, 100], batch=35, window=2)  # 80 : 20 : 10
    assert plan.quotas(2).tolist() == [51, 13, 6]  # of 70: 50.9, 12.7, 6.4
    drawn = epoch_of(plan, 0)
    counts = np.bincount(drawn[:, 0])
    assert np.abs(counts / len(drawn) - np.array([80, 20, 10]) / 110).max() < 0.01
    small = drawn[drawn[:, 0] == 2]
    turns = collections.Counter(small[:, 2].tolist())
    assert all(count == 100 for turn, count in turns.items() if turn < max(turns)), "whole passes, one after another"
    for turn in range(max(turns)):
        assert sorted(small[small[:, 2] == turn, 1]) == list(range(100))


def test_weights_can_be_given() -> None:
    plan = Plan([1000, 10], batch=10, weights=[1, 3], window=4)
    assert plan.quotas(4).tolist() == [10, 30]
    assert Plan([5, 5], batch=2, weights=[0, 1]).at(0, 0)[:, 0].tolist() == [1, 1]
    for wrong in ({"sizes": []}, {"sizes": [3, 0]}, {"weights": [1.0]}, {"weights": [-1, 1]}, {"weights": [0, 0]}):
        with pytest.raises(ConfigError):
            Plan(**{"sizes": [5, 5], "batch": 2, **wrong})
    with pytest.raises(ConfigError, match="lengths"):
        Plan([5], batch=2, lengths=[np.arange(4)])


def test_a_window_reads_few_long_runs() -> None:
    plan = Plan([100_000], batch=32, window=64, block=256)
    window = np.sort(np.concatenate([plan.at(0, position) for position in range(64)])[:, 1])
    runs = 1 + int((np.diff(window) > 1).sum())
    assert runs <= 2048 // 256 + 1
    inside = plan.at(0, 0)[:, 1]
    assert len({int(index) // 256 for index in inside}) > 4, "a batch is of many blocks"


@pytest.mark.parametrize("count", [1, 5, 64, 65, 1_000, 20_000])
def test_blocks_are_permuted(count: int) -> None:
    places = in_blocks(np.arange(count), count, np.random.default_rng(0))
    assert sorted(places.tolist()) == list(range(count))
    jumps = int((np.diff(places) != 1).sum())
    assert jumps <= max(BLOCKS, count // 256) + 2


def test_sorting_by_length_saves_padding_and_keeps_the_samples() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 0.5, 4_096).astype(np.int64)
    plain, by_length = (Plan([4_096], batch=32, world=2, window=32, lengths=given) for given in (None, [lengths]))

    def padding(plan: Plan) -> float:
        batches = [lengths[plan.at(0, p, rank)[:, 1]] for p in range(plan.batches) for rank in range(2)]
        return 1 - sum(b.sum() for b in batches) / sum(b.max() * len(b) for b in batches)

    assert padding(plain) > 0.4
    assert padding(by_length) < 0.08, "the longest batch of each window has a long tail here"
    assert sorted(by_length.order(0)[:, 1]) == sorted(plain.order(0)[:, 1]) == list(range(4_096))
    means = [lengths[by_length.at(0, p)[:, 1]].mean() for p in range(32)]
    assert np.corrcoef(means, range(32))[0, 1] < 0.5, "batches do not grow through a window"


# ---------------------------------------------------------------- loading

SOURCES = [Numbers("a", 90), Numbers("b", 10)]


def test_a_mixture_is_one_source_with_an_order_of_its_own() -> None:
    mixture = Mixture([Numbers("a", 900), Numbers("b", 100)])
    assert len(mixture) == 1000
    order = mixture.order(seed=0, epoch=0)
    assert order.tolist() == mixture.order(0, 0).tolist() != mixture.order(0, 1).tolist()
    names = collections.Counter(mixture.draw(int(index), np.random.default_rng(0))[0] for index in order)
    assert names == {"a": 750, "b": 250}  # 30 : 10
    assert len(list(mixture.texts())) == 1000
    rng = np.random.default_rng(0)
    assert [mixture.draw(index, rng)[:2] for index in (0, 899, 900, 999)] == [("a", 0), ("a", 899), ("b", 0), ("b", 99)]

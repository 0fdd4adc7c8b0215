"""Which samples a step has: drawn by number, ahead of it or in it, and whole ones in place of damaged ones."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from ra_blip.errors import DataError, ImageError
from ra_blip.training.samples import AHEAD, TRIES, Loader
from tests.training.line import Numbers


def opener(damaged: Collection[int]) -> Any:
    """Opens the pictures of all samples but some."""

    def open_pictures(sample: tuple[int, float]) -> None:
        if sample[0] in damaged:
            raise ImageError(f"{sample[0]}.jpg: damaged")

    return open_pictures


def at(total: int, step: int, size: int, seed: int, rank: int = 0, world: int = 1) -> list[Any]:
    return Loader(Numbers(total), size, seed, step + 1, rank, world).at(step)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as made:
        yield made


def test_samples_are_a_pure_function_of_the_step() -> None:
    straight = [at(10, step, 4, seed=3) for step in range(8)]
    once = Loader(Numbers(10), 4, seed=3, steps=8)
    for step in (7, 0, 5, 3):
        assert at(10, step, 4, seed=3) == once.at(step) == straight[step]
    assert at(10, 0, 4, seed=4) != straight[0]


def test_an_epoch_holds_every_sample_once_and_the_next_one_in_another_order() -> None:
    drawn = [sample for step in range(10) for sample in at(10, step, 3, seed=0)]
    epochs = [[index for index, _ in drawn[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(10))
    varied: dict[int, set[float]] = {}
    for index, number in drawn:
        varied.setdefault(index, set()).add(number)
    assert all(len(numbers) == 3 for numbers in varied.values()), "drawn afresh in every epoch"


@pytest.mark.parametrize(("size", "world"), [(4, 2), (8, 4), (5, 2), (3, 3)])
def test_ranks_share_the_batch_exactly(size: int, world: int) -> None:
    for step in (0, 1, 5):  # also over the end of an epoch
        parts = [at(7, step, size, 1, rank, world) for rank in range(world)]
        together = at(7, step, size, 1)
        assert sorted(sample for part in parts for sample in part) == sorted(together)
        assert [parts[place % world][place // world] for place in range(size)] == together


# ---------------------------------------------------------------- ahead of the step


def test_threads_draw_the_next_steps_and_change_no_sample(pool: ThreadPoolExecutor) -> None:
    drawn: list[int] = []

    class Watched(Numbers):
        def draw(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
            assert threading.current_thread() is not threading.main_thread()
            drawn.append(index)
            return super().draw(index, rng)

    ahead = Loader(Watched(10), 4, 3, 6, pool=pool)
    assert ahead.at(0) == at(10, 0, 4, 3)
    pool.submit(int).result()
    assert len(drawn) >= 4 * AHEAD, "the steps behind it were asked for, and come first in line"
    assert [ahead.at(step) for step in range(1, 6)] == [at(10, step, 4, 3) for step in range(1, 6)]
    assert len(drawn) == 24, "nothing twice, and nothing beyond the last step"


def test_an_error_of_a_thread_belongs_to_its_step(pool: ThreadPoolExecutor) -> None:
    class Torn(Numbers):
        def draw(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
            if index == bad:
                raise DataError("shard 3 is torn")
            return super().draw(index, rng)

    bad = at(8, 2, 2, 0)[0][0]
    loader = Loader(Torn(8), 2, 0, 4, pool=pool)
    assert [loader.at(step) for step in (0, 1)] == [at(8, step, 2, 0) for step in (0, 1)]
    with pytest.raises(DataError, match="shard 3"):
        loader.at(2)


# ---------------------------------------------------------------- damaged pictures


def test_a_damaged_sample_is_replaced_by_one_that_follows_from_its_number(pool: ThreadPoolExecutor) -> None:
    damaged, seed = {3, 5}, 7
    loader = Loader(Numbers(10), 5, seed, 4, open_pictures=opener(damaged))
    found = [sample for step in range(4) for sample in loader.at(step)]
    expected, listed = [], []
    for place in range(20):
        epoch, position = divmod(place, 10)
        order = np.random.default_rng([seed, epoch]).permutation(10)
        index = int(order[position])
        rng, number, attempt = np.random.default_rng([seed, epoch, index]), index, 0
        while number in damaged:
            listed.append((str((number, float(rng.random()))), f"{number}.jpg: damaged"))
            attempt += 1
            rng = np.random.default_rng([seed, epoch, index, attempt])
            number = int(order[rng.integers(10)])
        expected.append((number, float(rng.random())))
    assert found == expected and not {number for number, _ in found} & damaged
    assert loader.damaged == listed and len(listed) >= 4
    before = [sample for step in range(4) for sample in at(10, step, 5, seed)]
    changed = {old[0] for old, new in zip(before, found, strict=True) if old != new}
    assert changed == damaged, "the others stay what they were"
    for world, threads in ((1, pool), (2, None), (2, pool), (5, None)):
        ranks = [Loader(Numbers(10), 5, seed, 4, r, world, opener(damaged), threads) for r in range(world)]
        dealt = [[rank.at(step) for rank in ranks] for step in range(4)]
        assert [parts[i % world][i // world] for parts in dealt for i in range(5)] == found
        assert sorted(one for rank in ranks for one in rank.damaged) == sorted(listed)


def test_a_replacement_is_never_a_sample_that_was_held_out() -> None:
    class Half(Numbers):
        def order(self, seed: int, epoch: int) -> np.ndarray:
            return np.array([0, 2, 4, 6, 8] * 2)

    loader = Loader(Half(10), 10, 0, 20, open_pictures=opener({0, 2, 4}))
    assert {index for step in range(20) for index, _ in loader.at(step)} == {6, 8}


def test_without_a_whole_picture_there_is_an_end() -> None:
    everything = opener(range(10))
    with pytest.raises(ImageError, match=rf"{TRIES} samples drawn one after another .*\d\.jpg: damaged"):
        Loader(Numbers(10), 4, 0, 1, open_pictures=everything).at(0)
    with pytest.raises(ImageError, match=r"^\d\.jpg: damaged$"):
        Loader(Numbers(10), 4, 0, 1, open_pictures=everything, strict=True).at(0)


def test_a_sample_that_cannot_even_be_drawn_is_replaced() -> None:
    class Views(Numbers):
        def draw(self, index: int, rng: np.random.Generator) -> tuple[int, float]:
            if index == 2:
                raise ImageError("2.jpg: no such picture")
            return super().draw(index, rng)

    loader = Loader(Views(4), 4, 0, 1)
    assert 2 not in {index for index, _ in loader.at(0)}
    assert set(loader.damaged) == {("number 2", "2.jpg: no such picture")}

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ra_blip.data.held_out import hold_out
from ra_blip.training.samples import Loader


class Letters:
    """Forty samples; a draw says its index and the generator's first number."""

    def __len__(self) -> int:
        return 40

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        return index, int(rng.integers(1000))

    def texts(self) -> Iterator[str]:
        yield "a"


class Balanced(Letters):
    """With an order of its own, in which even samples come twice and odd ones never."""

    def order(self, seed: int, epoch: int) -> np.ndarray:
        return np.repeat(np.arange(0, 40, 2), 2)


def test_held_out_samples_are_never_trained_on() -> None:
    rest, held = hold_out(Letters(), 3, seed=1)
    kept_out = {index for index, _ in held}
    assert len(rest) == 37 and len(kept_out) == 3
    loader = Loader(rest, size=37, seed=1, steps=8)
    drawn = [index for step in range(8) for index, _ in loader.at(step)]
    assert sorted(drawn) == sorted(8 * [index for index in range(40) if index not in kept_out])
    assert list(rest.texts()) == ["a"]


def test_held_out_samples_follow_the_seed_and_are_a_tenth_at_most() -> None:
    assert hold_out(Letters(), 3, seed=1)[1] == hold_out(Letters(), 3, seed=1)[1]
    assert hold_out(Letters(), 3, seed=1)[1] != hold_out(Letters(), 3, seed=2)[1]
    assert len(hold_out(Letters(), 30, seed=1)[1]) == 4


def test_nothing_held_out_leaves_the_source_itself() -> None:
    source = Letters()
    assert hold_out(source, 0, seed=1) == (source, [])


def test_a_source_with_an_order_of_its_own_keeps_it() -> None:
    rest, held = hold_out(Balanced(), 4, seed=1)
    order = rest.order(1, 0).tolist()  # type: ignore[attr-defined]
    allowed = [index for index in np.repeat(np.arange(0, 40, 2), 2).tolist() if index not in {i for i, _ in held}]
    assert len(order) == len(rest) == 36 and order[: len(allowed)] == allowed

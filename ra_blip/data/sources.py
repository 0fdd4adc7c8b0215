"""The sources that a recipe can name: where training samples and tokenizer texts come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ra_blip.config import DataConfig, StageConfig
from ra_blip.data.atlas import World
from ra_blip.data.atlas_captions import AtlasCaptions
from ra_blip.data.atlas_examples import AtlasExamples, texts
from ra_blip.data.record_examples import BalancedExamples, CaptionPictures, RecordExamples
from ra_blip.data.views import Views
from ra_blip.errors import ConfigError

TOKENIZER_TEXTS = 20_000  # lines with made-up names that a generated world trains tokenizers on


class Source(Protocol):
    """Random-access training samples; a draw is a pure function of (index, generator state)."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def draw(self, index: int, rng: np.random.Generator) -> Any:
        """One sample: an ``Example``, or a captioned ``Item`` for pretraining."""

    def texts(self) -> Iterator[str]:
        """Texts to train tokenizers on, where the recipe names none."""


class _Atlas(AtlasExamples):
    def __init__(self, data: DataConfig, stage: StageConfig, out: Path, seed: int) -> None:
        world = World.generate(data.entities, seed)
        folder = Path(data.root) if data.root else out / "world"
        world.write(folder)
        purpose = "retrieve" if stage.name == "retrieve" else "answer"
        super().__init__(world, folder, purpose, data.categories, data.rename, _negatives(stage))  # type: ignore[arg-type]
        self._world, self._seed = world, seed

    def texts(self) -> Iterator[str]:
        return texts(self._world, TOKENIZER_TEXTS, np.random.default_rng([self._seed, 3]))


class _AtlasCaptions(AtlasCaptions):
    def __init__(self, data: DataConfig, stage: StageConfig, out: Path, seed: int) -> None:
        self._world, self._seed = World.generate(data.entities, seed), seed
        super().__init__(data.pictures, seed, self._world)
        self.prepare(Path(data.root) if data.root else out / "world")

    def texts(self) -> Iterator[str]:
        return texts(self._world, TOKENIZER_TEXTS, np.random.default_rng([self._seed, 3]))


def _negatives(stage: StageConfig) -> int:
    return stage.hard_negatives if stage.name == "retrieve" else stage.negatives_max


def _records(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    if not data.items or not data.questions:
        raise ConfigError("data: the source 'records' needs data.items and data.questions")
    kind = BalancedExamples if data.balanced else RecordExamples
    return kind(
        data.items,
        data.questions,
        _negatives(stage),
        data.mined,
        data.categories,
        golds=data.golds,
        rename=data.rename,
        view=Views(out / "views"),
        views=data.views,
    )


def _captions(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    if not data.items:
        raise ConfigError("data: the source 'captions' needs data.items")
    return CaptionPictures(data.items)


SOURCES: dict[str, Callable[[DataConfig, StageConfig, Path, int], Source]] = {
    "records": _records,
    "captions": _captions,
    "atlas": _Atlas,
    "atlas_captions": _AtlasCaptions,
}

"""The sources that a recipe can name: where training samples and tokenizer texts come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ra_blip.config import DataConfig, StageConfig
from ra_blip.data.atlas import World
from ra_blip.data.atlas_captions import AtlasCaptions
from ra_blip.data.atlas_examples import AtlasExamples, texts
from ra_blip.data.readers import open_dataset
from ra_blip.data.record_examples import BalancedExamples, CaptionPictures, RecordExamples, read_mined
from ra_blip.data.retrieved_examples import task_mixture
from ra_blip.data.shards import ShardPictures
from ra_blip.data.stream import Mixture
from ra_blip.data.training_records import captions, say, training_records
from ra_blip.data.views import Views
from ra_blip.errors import ConfigError
from ra_blip.records import Item, Question, read_items, read_questions

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
        purpose = stage.name if stage.name in ("retrieve", "rerank") else "answer"
        super().__init__(world, folder, purpose, data.categories, data.rename, _negatives(stage))
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


def _examples(
    data: DataConfig, stage: StageConfig, out: Path, items: Iterable[Item], asked: Iterable[Question]
) -> Source:
    kind = BalancedExamples if data.balanced else RecordExamples
    return kind(
        items,
        asked,
        _negatives(stage),
        data.mined,
        data.categories,
        golds=data.golds,
        rename=data.rename,
        view=Views(out / "views"),
        views=data.views,
        where=data.questions or str(data.root),
    )


def _records(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    if not data.items or not data.questions:
        raise ConfigError("data: the source 'records' needs data.items and data.questions")
    return _examples(data, stage, out, read_items(data.items), read_questions(data.questions))


def _captions(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    if not data.items:
        raise ConfigError("data: the source 'captions' needs data.items")
    return CaptionPictures(read_items(data.items), data.items)


def _dataset(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    """A data set where it lies. What is read and what is left out is said in one line."""
    if not data.root:
        raise ConfigError("data: the source 'dataset' needs data.root, the folder of a data set")
    dataset = open_dataset(data.root, data.dataset, data.strict)
    if stage.name == "pretrain":
        pictures = CaptionPictures(captions(dataset, data.split), data.root)
        say(dataset, f"{len(pictures):,} captions of {data.split}")
        return pictures
    asked, items = training_records(dataset, data.split, read_mined(data.mined) if data.mined else {}, seed)
    return _examples(data, stage, out, items, asked)


def _shards(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    """Captioned pictures in shards; a folder of several sets is their mixture, by the square roots of their sizes."""
    if not data.root:
        raise ConfigError("data: the source 'shards' needs data.root, a folder of tar shards")
    if stage.name != "pretrain":
        raise ConfigError(f"data: the source 'shards' gives captioned pictures; stage {stage.name!r} needs questions")
    folders = sorted({tar.parent for tar in Path(data.root).glob("*/*.tar")})
    sets = [ShardPictures(folder, data.strict) for folder in folders or [Path(data.root)]]
    return sets[0] if len(sets) == 1 else Mixture(sets)


def _retrieved(data: DataConfig, stage: StageConfig, out: Path, seed: int) -> Source:
    if not data.items or not data.questions or not data.mined:
        raise ConfigError("data: the source 'retrieved' needs data.items, data.questions and data.mined, their hits")
    items, asked = read_items(data.items), read_questions(data.questions)
    shares = (data.no_retrieval, data.random_retrieval)
    return task_mixture(items, asked, data.mined, data.tasks, data.keep, *shares, data.questions)


SOURCES: dict[str, Callable[[DataConfig, StageConfig, Path, int], Source]] = {
    "records": _records,
    "captions": _captions,
    "dataset": _dataset,
    "shards": _shards,
    "retrieved": _retrieved,
    "atlas": _Atlas,
    "atlas_captions": _AtlasCaptions,
}

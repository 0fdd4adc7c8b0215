"""What a training stage is: samples to a batch, a batch to (losses, report)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from ra_blip.config import StageConfig
from ra_blip.data.stream import Samples
from ra_blip.models.rablip import RABlip
from ra_blip.records import Example, Item, Question
from ra_blip.training.batches import Batch

Losses = dict[str, Tensor]
Report = dict[str, float]


class Stage(nn.Module):
    """Base: holds the model and the weights of the losses.

    Args:
        model: trained in place.
        config: loss weights and draws.
    """

    batch_coupled = False  # True where the loss compares the samples of a batch with each other

    def __init__(self, model: RABlip, config: StageConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> Batch:
        """Samples of the data source -> batch; draws from ``rng`` only."""
        raise TypeError(f"{type(self).__name__} is not a stage")

    def forward(self, batch: Batch) -> tuple[Losses, Report]:
        """Batch -> (terms to differentiate, already weighted; numbers to log)."""
        raise TypeError(f"{type(self).__name__} is not a stage")

    def counts(self, batch: Batch) -> dict[str, int]:
        """Of how many things each loss term of a batch is the mean, on this rank.

        Needed where a batch is cut into parts (``train.accumulate``): they count by it. The same names for every
        batch; a term that is not named counts the same in each part.
        """
        return {}

    def shown(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """What the model makes of a few held-out samples, as JSON values for people to read; none by default."""
        return []

    def divide(self, source: Samples, seed: int) -> tuple[Samples, list[Any]]:
        """What is trained on, and samples that are held out for :meth:`finish`; none by default."""
        return source, []

    def finish(self, held: Sequence[Any], seed: int) -> None:
        """What is measured with the trained model before it is saved, on held-out samples; nothing by default."""

    def opener(self) -> Callable[[Any], None]:
        """What opens the pictures of a sample ahead of its step, in any thread, unless their features are kept.

        It raises :class:`ImageError` for a picture that cannot be opened.
        """
        processor, store = self.model.processor, None if self._live else self.model.store

        def open_pictures(sample: Any) -> None:
            records: Sequence[Item | Question] = [sample]
            if isinstance(sample, Example):
                records = [sample.question, *sample.gold, *sample.negatives]
            for record in records:
                if record.image and (store is None or not store.holds(record.image)):
                    processor.open(record.image)

        return open_pictures

    @property
    def _live(self) -> bool:
        """Whether the tower trains."""
        return any(parameter.requires_grad for parameter in self.model.vision.parameters())

    def features(self, images: Sequence[str]) -> Tensor:
        """Picture features (U, N, W): live where the tower is trained, else frozen and cached."""
        if self._live:
            return self.model.vision(self.model.processor.pixels(images).to(self.model.device))  # type: ignore[no-any-return]
        return self.model.image_features(images)

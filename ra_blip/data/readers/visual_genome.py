"""Visual Genome as published: ``region_descriptions.json``, pictures in ``VG_100K/`` and ``VG_100K_2/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ra_blip.data.readers.captions import CaptionDataset, Picture
from ra_blip.data.readers.json_stream import elements


class VisualGenome(CaptionDataset):
    """Region descriptions as captions of the whole picture, all for training, since no split is published.

    The boxes of the regions are not read. The file of 5.4 million descriptions is decoded picture by picture.
    """

    name = "visual-genome"

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By ``region_descriptions.json``."""
        return (root / "region_descriptions.json").is_file()

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``."""
        return ("train",)

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        for where, entry in elements(self.root / "region_descriptions.json"):
            try:
                name, regions = str(entry["id"]), [region["phrase"] for region in entry["regions"]]
            except (KeyError, TypeError) as error:
                self.problems.report("malformed record", where, f"not a picture with regions ({error!r})")
                continue
            places = [f"{below}{folder}/{name}.jpg" for below in ("", "images/") for folder in ("VG_100K", "VG_100K_2")]
            yield from self._picture(name, places, regions, where)

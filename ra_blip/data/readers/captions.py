"""What all caption sets share, and those in COCO's form: COCO, a cut of it, NoCaps, Karpathy's splits.

A caption set's knowledge base is its training captions: what is there to test with is never knowledge. An item is one
caption with its picture; of several captions of a picture the items are ``ID.0``, ``ID.1`` ... The files are decoded
element by element; the captions of one split are held, not the decoded file.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.dataset import Dataset, SplitFiles
from ra_blip.data.readers.json_stream import elements
from ra_blip.data.readers.reading import existing, first_file, unique
from ra_blip.records import Item, Question

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture with its captions, none where the data set keeps them; ``category`` as in NoCaps's domains."""

    id: str
    image: str
    captions: tuple[str, ...]
    category: str | None = None


class CaptionDataset(Dataset):
    """Captioned pictures. :meth:`items` are the training captions; :meth:`questions` are none in any split."""

    def pictures(self, split: str) -> Iterator[Picture]:
        """The pictures of one split, each once, in the order in which they lie there.

        Raises:
            DataError: no such split, or a file that is broken.
        """
        self.require_split(split)
        return unique(self._pictures(split), self.problems)

    @abc.abstractmethod
    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        """Where each picture of a split stands, and the picture; what cannot be read is reported."""

    def captions(self, split: str) -> Iterator[Item]:
        """The captions of one split with their pictures. Raises :class:`DataError` as :meth:`pictures`."""
        return (item for picture in self.pictures(split) for item in captioned(picture))

    def items(self) -> Iterator[Item]:
        """The pictures of the training split, an item a caption; nothing where there is no such split."""
        if "train" in self.splits:
            for picture in self.pictures("train"):
                yield from captioned(picture) if picture.captions else [Item(picture.id, image=picture.image)]

    def questions(self, split: str) -> Iterator[Question]:
        """None: a caption answers no question."""
        self.require_split(split)
        return iter(())

    def references(self, split: str) -> Iterator[dict[str, Any]]:
        """All captions of each picture of one split, for the metric ``caption``."""
        for picture in self.pictures(split):
            reference = {"id": picture.id, "answers": list(picture.captions)}
            yield {**reference, "category": picture.category} if picture.category else reference

    def _words(self, captions: Iterable[Any], where: str) -> tuple[str, ...]:
        """The captions that say something; the others are reported as ``empty caption``."""
        words = []
        for caption in captions:
            if isinstance(caption, str) and caption.strip():
                words.append(caption.strip())
            else:
                self.problems.report("empty caption", where, "a caption is empty or no text")
        return tuple(words)

    def _picture(
        self, name: str, images: Sequence[str], captions: Iterable[Any] | None, where: str, category: str | None = None
    ) -> Iterator[tuple[str, Picture]]:
        """The picture of one record, where its file is there and something is said of it; else nothing, reported.

        ``captions`` are None for a picture that is published without any.
        """
        image = existing(self.root, images, where, self.problems)
        words = self._words(captions or (), where)
        if image and not words and captions is not None:
            self.problems.report("no caption", where, f"picture {name!r} has no caption")
        elif image:
            yield where, Picture(name, image, words, category)


def captioned(picture: Picture) -> Iterator[Item]:
    """A picture's captions as items; none without a caption."""
    several = len(picture.captions) > 1
    for number, caption in enumerate(picture.captions):
        yield Item(f"{picture.id}.{number}" if several else picture.id, text=caption, image=picture.image)


class CocoForm(SplitFiles, CaptionDataset):
    """One JSON object a split with ``images`` and ``annotations``, in the folder or in ``annotations/`` below it."""

    folders: ClassVar[dict[str, tuple[str, ...]]]  # where the pictures of a split may lie

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        file = cls.files[split]
        return first_file(root, (file, f"annotations/{file}")) or root / file

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        path = self._path(self.root, split)
        secret = split == "test"  # published without captions
        captions: dict[str, list[Any]] = {}
        for where, entry in elements(path, "annotations") if not secret else ():
            if isinstance(entry, dict) and "image_id" in entry:
                captions.setdefault(str(entry["image_id"]), []).append(entry.get("caption"))
            else:
                self.problems.report("malformed record", where, "expected an annotation with 'image_id' and 'caption'")
        known = set()
        for where, entry in elements(path, "images"):
            name, file = (entry.get(key) for key in ("id", "file_name")) if isinstance(entry, dict) else (None, None)
            if name is None or not isinstance(file, str):
                self.problems.report("malformed record", where, "expected a picture with 'id' and 'file_name'")
                continue
            known.add(str(name))
            images, said = [f"{folder}/{file}" for folder in self.folders[split]], captions.get(str(name), [])
            yield from self._picture(str(name), images, None if secret else said, where, entry.get("domain"))
        for name in captions.keys() - known:
            self.problems.report("unknown picture", str(path), f"picture {name!r} is captioned, not listed")


class Coco(CocoForm):
    """COCO 2017: ``captions_{train,val}2017.json``; pictures in ``train2017/``, ``images/train2017/``, ``images/``."""

    name = "coco"
    files: ClassVar = {split: f"captions_{split}2017.json" for split in ("train", "val")}
    folders: ClassVar = {split: (f"{split}2017", f"images/{split}2017", "images") for split in ("train", "val")}


class Coco2014(CocoForm):
    """COCO 2014, as :class:`Coco`. Not to be mixed with 2017, which trains on most of 2014's validation pictures."""

    name = "coco-2014"
    files: ClassVar = {split: f"captions_{split}2014.json" for split in ("train", "val")}
    folders: ClassVar = {split: (f"{split}2014", f"images/{split}2014", "images") for split in ("train", "val")}


class CaptionsFile(CocoForm):
    """Any set in COCO's form: ``captions.json`` with pictures in ``images/`` or beside it, all of it for training."""

    name = "captions"
    files: ClassVar = {"train": "captions.json"}
    folders: ClassVar = {"train": ("images", ".")}


class NoCaps(CocoForm):
    """NoCaps: validation captions with their domains, test pictures without captions; nothing to train on."""

    name = "nocaps"
    files: ClassVar = {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}
    folders: ClassVar = {split: (split, f"images/{split}", "images") for split in ("val", "test")}


class Karpathy(CaptionDataset):
    """Karpathy's splits of COCO 2014: ``dataset_coco.json`` (``restval`` is training); pictures as COCO 2014's."""

    name = "coco-karpathy"
    _PARTS: ClassVar = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """By ``dataset_coco.json``."""
        return (root / "dataset_coco.json").is_file()

    @property
    def splits(self) -> tuple[str, ...]:
        """All three stand in the one file."""
        return SPLITS

    def _pictures(self, split: str) -> Iterator[tuple[str, Picture]]:
        for where, entry in elements(self.root / "dataset_coco.json", "images"):
            try:
                if entry["split"] in self._PARTS[split]:
                    image = f"{entry['filepath']}/{entry['filename']}"
                    said = [sentence["raw"] for sentence in entry["sentences"]]
                    yield from self._picture(str(entry["cocoid"]), (image, f"images/{image}"), said, where)
            except (KeyError, TypeError) as error:
                self.problems.report("malformed record", where, f"not a picture of Karpathy's splits ({error!r})")

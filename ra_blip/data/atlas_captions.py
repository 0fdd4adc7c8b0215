"""Pictures of random buildings with captions, to pre-train on."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from ra_blip.data.atlas import World, make_folder, save_picture
from ra_blip.data.atlas_draw import draw
from ra_blip.data.atlas_look import Look, caption, paraphrase, random_look
from ra_blip.errors import ConfigError, DataError
from ra_blip.records import Item, read_items, write_jsonl

SIZE = 96


class AtlasCaptions:
    """Pictures of buildings that are in no world, each with a caption that names all of its attributes.

    Args:
        pictures: how many.
        seed: what they are drawn from.
        world: buildings of its test split are never drawn: not even with another door or number of windows.

    Raises:
        ConfigError: ``pictures`` is less than 1, or ``seed`` is negative.
    """

    def __init__(self, pictures: int = 4000, seed: int = 0, world: World | None = None) -> None:
        if pictures < 1 or seed < 0:
            raise ConfigError(f"data.pictures is {pictures}, seed is {seed}: at least 1 picture, a seed from 0")
        rng = np.random.default_rng([seed, 6])
        hidden = {e.look.key for e in world.entities if e.split == "test"} if world is not None else set()
        self.looks: list[Look] = []
        while len(self.looks) < pictures:
            look = random_look(rng)
            if look.key not in hidden:
                self.looks.append(look)
        self.seed = seed
        self._folder: Path | None = None

    def __len__(self) -> int:
        return len(self.looks)

    def prepare(self, folder: str | Path) -> None:
        """Draw into ``folder/captions``, 96 pixels a side; ``captions.jsonl`` comes last, nothing is done where it is.

        Raises:
            OutputError: the folder cannot be written.
        """
        self._folder = Path(os.path.normpath(folder)) / "captions"  # as it is read back
        items = [Item(self._id(i), caption(look), image=self._image(i)) for i, look in enumerate(self.looks)]
        manifest = self._folder / "captions.jsonl"
        try:
            if manifest.is_file() and read_items(manifest) == items:
                return
        except DataError:
            pass  # of another version or damaged: drawn again
        make_folder(self._folder)
        manifest.unlink(missing_ok=True)
        for index, look in enumerate(self.looks):
            seed = zlib.crc32(f"{self.seed}/caption/{index}".encode())
            save_picture(draw(look, seed, SIZE), Path(self._image(index)))
        write_jsonl(manifest, items)

    def draw(self, index: int, rng: np.random.Generator) -> Item:
        """Picture ``index`` with its caption in one of several wordings.

        Raises:
            DataError: :meth:`prepare` was not called.
        """
        index %= len(self.looks)
        return Item(self._id(index), paraphrase(self.looks[index], rng), image=self._image(index))

    def _id(self, index: int) -> str:
        return f"caption-{self.seed}-{index:05d}"

    def _image(self, index: int) -> str:
        if self._folder is None:
            raise DataError("the caption pictures are not drawn yet: call prepare(folder) first")
        return str(self._folder / f"{index:05d}.png")

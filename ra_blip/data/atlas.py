"""The generated world of the demo and the tests: fictional buildings with pictures, facts and questions.

Everything follows from a seed. The split is by building: those of the test split occur in no training sample.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ra_blip.data.atlas_draw import draw
from ra_blip.data.atlas_entity import Entity, Split, draw_facts
from ra_blip.data.atlas_look import ALL_KEYS, complete
from ra_blip.data.atlas_questions import VIEWS, ask_about, captioned_picture, question_picture, text_fact
from ra_blip.data.atlas_text import CATEGORIES, STORIES, fresh_name, slug, word
from ra_blip.errors import ConfigError, OutputError
from ra_blip.records import Item, Question, write_jsonl, write_text

SMALLEST = 16
LARGEST = (len(ALL_KEYS) - 100) * 2 // 3  # half as many again are nameless; 100 looks are left for newcomers
KNOWLEDGE_SIZE = 256
QUERY_SIZE = 128
FORMAT = 1  # goes up when the same seed draws or says something else


@dataclasses.dataclass(frozen=True)
class Newcomer:
    """A building that is in no list of the world, with what the knowledge base would hold about it, and questions."""

    entity: Entity
    items: tuple[Item, ...]
    questions: tuple[Question, ...]


@dataclasses.dataclass(frozen=True)
class World:
    """The buildings, and the items and questions about them.

    Attributes:
        named: buildings with a name, facts and a captioned picture.
        unnamed: buildings of which there is a picture and nothing else.
        seed: what everything was drawn from.
    """

    named: tuple[Entity, ...]
    unnamed: tuple[Entity, ...]
    seed: int

    @staticmethod
    def generate(entities: int = 400, seed: int = 0) -> World:
        """``entities`` named buildings and half as many without a name, a quarter of each for testing.

        Raises:
            ConfigError: fewer than 16 entities, more than a description can tell apart, or a negative seed.
        """
        if not SMALLEST <= entities <= LARGEST:
            raise ConfigError(
                f"data.entities is {entities}: a generated world has {SMALLEST} to {LARGEST} "
                f"(with half as many nameless ones, the {len(ALL_KEYS)} looks that a description can tell apart)"
            )
        if seed < 0:
            raise ConfigError(f"seed is {seed}: it must not be negative")
        rng = np.random.default_rng([seed, 1])
        keys = rng.permutation(len(ALL_KEYS))
        looks = [complete(ALL_KEYS[i], rng) for i in keys[: entities + entities // 2]]
        taken: set[str] = set()
        named, unnamed = [], []
        for number in range(entities):
            name = fresh_name(rng, taken)
            taken.update((name, name.split()[0]))  # a designer is never called like a building
            split: Split = "train" if number < entities - entities // 4 else "test"
            facts = draw_facts(rng, taken)
            named.append(Entity(slug(name), name, looks[number], **facts, split=split, picture=slug(name)))
        for number, look in enumerate(looks[entities:]):
            split = "train" if number < entities // 2 - entities // 8 else "test"
            id = f"picture-{number:04d}"
            unnamed.append(Entity(id, None, look, **draw_facts(rng, taken), split=split, picture=id))
        return World(tuple(named), tuple(unnamed), seed)

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All buildings, named ones first."""
        return self.named + self.unnamed

    def of(self, split: Split) -> tuple[list[Entity], list[Entity]]:
        """The named and the unnamed buildings of a split."""
        return [e for e in self.named if e.split == split], [e for e in self.unnamed if e.split == split]

    def reserved(self) -> frozenset[str]:
        """Names and designers of the test split, which training must not use."""
        return frozenset(part for e in self.of("test")[0] for part in (e.name or "", e.designer))

    def items(self, folder: str | Path) -> list[Item]:
        """The knowledge base: a captioned picture and two texts for each named building, other pictures, stories."""
        items: list[Item] = []
        for entity in self.named:
            items += [entity.picture_item(folder), entity.design_item(), entity.place_item()]
        items += [entity.picture_item(folder) for entity in self.unnamed]
        return items + self._stories()

    def _stories(self) -> list[Item]:
        rng = np.random.default_rng([self.seed, 2])
        taken = {(e.name or "").split()[0] for e in self.named}
        items = []
        for number in range(len(self.named) // 8):
            name = word(rng)
            while name in taken:
                name = word(rng)
            taken.add(name)
            text = STORIES[number % len(STORIES)].format(name=name, **draw_facts(rng, taken))
            items.append(Item(id=f"story-{number:03d}", text=text))
        return items

    def questions(self, split: Split, folder: str | Path, per_category: int = 100) -> list[Question]:
        """Questions of the five categories about the buildings of one split, with answers and gold item ids.

        Every building is asked about before one is asked about again, then for something else; a small world has fewer
        than ``per_category`` questions in a category.
        """
        named, unnamed = self.of(split)
        questions = []
        for place, category in enumerate(CATEGORIES):
            rng = np.random.default_rng([self.seed, 3 + (split == "test"), place])
            for number, asked in enumerate(ask_about(category, named, unnamed, folder, per_category, rng)):
                questions.append(dataclasses.replace(asked, id=f"{split}.{category}.{number:04d}"))
        return questions

    def write(self, folder: str | Path, per_category: int = 100) -> None:
        """Write ``images/``, ``items.jsonl``, ``questions.jsonl`` (test), ``train_questions.jsonl``, ``world.json``.

        ``world.json`` comes last; nothing is done where it says that this world is already there.

        Raises:
            OutputError: the folder cannot be written, or holds another world.
        """
        folder = Path(folder)
        items = self.items(folder)
        asked = {"questions": self.questions("test", folder, per_category)}
        asked["train_questions"] = self.questions("train", folder, per_category)
        manifest = {
            "format": FORMAT,
            "seed": self.seed,
            "entities": len(self.named),
            "per_category": per_category,
            "pictures": VIEWS * len(self.entities),
            "items": len(items),
            **{name: len(questions) for name, questions in asked.items()},
        }
        found = _manifest(folder / "world.json") or {}
        if found == manifest:
            return
        other = [
            f"{key} {found[key]}" for key in ("seed", "entities") if found.get(key, manifest[key]) != manifest[key]
        ]
        if other and found.get("format") == FORMAT:  # models and indexes name its pictures
            raise OutputError(
                f"{folder} holds a generated world of {', '.join(other)}, not of seed {self.seed} and "
                f"{len(self.named)} entities: give its seed and data.entities, or another data.root"
            )
        make_folder(folder / "images")
        (folder / "world.json").unlink(missing_ok=True)
        for entity in self.entities:
            self.draw_views(entity, folder)
        write_jsonl(folder / "items.jsonl", items)
        for name, questions in asked.items():
            write_jsonl(folder / f"{name}.jsonl", questions)
        write_text(folder / "world.json", json.dumps(manifest, indent=1) + "\n")

    def draw_views(self, entity: Entity, folder: str | Path) -> None:
        """Draw the four views: 0 for the knowledge base, 1 to 3 to ask with. Raises :class:`OutputError`."""
        for view in range(VIEWS):
            seed = zlib.crc32(f"{self.seed}/{entity.picture}/{view}".encode())
            picture = draw(entity.look, seed, QUERY_SIZE if view else KNOWLEDGE_SIZE)
            save_picture(picture, Path(entity.image(folder, view)))

    def newcomer(self, folder: str | Path, seed: int = 0) -> Newcomer:
        """One more building, in no list: its pictures are drawn, its items and three questions returned.

        It shows that knowledge is edited without training: asked before its items are in the index, and after.

        Raises:
            OutputError: the folder cannot be written.
        """
        rng = np.random.default_rng([self.seed, 5, seed])
        used = {entity.look.key for entity in self.entities}
        free = [key for key in ALL_KEYS if key not in used]
        taken = {part for e in self.named for part in (e.name or "", e.designer)}
        name = fresh_name(rng, taken)
        look = complete(free[int(rng.integers(len(free)))], rng)
        entity = Entity(slug(name), name, look, **draw_facts(rng, taken), split="test", picture=slug(name))
        make_folder(Path(folder) / "images")
        self.draw_views(entity, folder)
        items = (entity.picture_item(folder), entity.design_item(), entity.place_item())
        questions = (
            captioned_picture(entity, "roof", rng),
            text_fact(entity, "designer", rng),
            question_picture(entity, "country", folder, 1, rng),
        )
        named = (dataclasses.replace(q, id=f"newcomer.{q.category}") for q in questions)
        return Newcomer(entity, items, tuple(named))


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises :class:`OutputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror or error})") from None


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG as a whole or not at all. Raises :class:`OutputError`."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(buffer.getvalue())
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None

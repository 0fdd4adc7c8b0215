"""A model without weights, for tests: hashed bags of words; a picture is read as the words of its file name."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ra_blip.records import Item, Question

STOP = {"the", "of", "in", "a", "is", "was", "who", "what", "this", "picture", "png", "by", "view", "which", "stands"}


def words(text: str) -> list[str]:
    """Content words."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP]


def picture_words(path: str | None) -> list[str]:
    """What a picture shows: the words of its file name, digits (the view) aside."""
    return [word for word in words(Path(path).name) if not word.isdigit()] if path else []


@dataclasses.dataclass
class Generated:
    """Answer and prompt; nothing is decoded."""

    answer: str
    prompt: str
    decoding: dict[str, int] = dataclasses.field(default_factory=dict)
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""


class FakeModel:
    """Deterministic; answers with the last word of the item that shares most words with the question."""

    def __init__(self, seed: int = 0, dimension: int = 256, max_items: int = 8) -> None:
        """``seed`` stands for the weights."""
        self.seed = seed
        self.dimension = dimension
        self.max_items = max_items
        self.fingerprint: dict[str, str | int] = {"weights": f"weights-{seed}", "dimension": dimension}
        self.calls: list[tuple[str, int]] = []
        self.asked: list[Question] = []

    def _vector(self, found: Sequence[str]) -> npt.NDArray[np.float32]:
        vector = np.full(self.dimension, 1e-3, dtype=np.float32)  # never the zero vector
        for word in found:
            digest = hashlib.sha256(f"{self.seed} {word}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            vector += rng.standard_normal(self.dimension).astype(np.float32)
        return vector / np.float32(np.linalg.norm(vector))

    def encode_question(self, questions: Sequence[Question]) -> npt.NDArray[np.float32]:
        """A picture outweighs the words, as what it shows is not among them."""
        self.calls.append(("question", len(questions)))
        return np.stack([self._vector(words(q.text) + 3 * picture_words(q.image)) for q in questions])

    def encode_items(
        self, items: Sequence[Item], questions: Sequence[Question] | None = None
    ) -> npt.NDArray[np.float32]:
        """Bag of words and picture words, whatever guides the reading."""
        self.calls.append(("items", len(items)))
        return np.stack([self._vector(words(i.full_text) + picture_words(i.image)) for i in items])

    def _overlap(self, question: Question, item: Item) -> float:
        asked = set(words(question.text)) | set(picture_words(question.image))
        known = set(words(item.full_text)) | set(picture_words(item.image))
        return len(asked & known) / max(len(asked), 1)

    def judge(self, questions: Sequence[Question], items: Sequence[Item]) -> npt.NDArray[np.float32]:
        """Share of the question's words that the item holds."""
        assert len(questions) == len(items)
        self.calls.append(("judge", len(items)))
        return np.array([self._overlap(q, i) for q, i in zip(questions, items, strict=True)], dtype=np.float32)

    def match(self, questions: Sequence[Question], items: Sequence[Item]) -> npt.NDArray[np.float32]:
        """As :meth:`judge`, 0.5 for an item without a picture."""
        self.calls.append(("match", len(items)))
        shares = [self._overlap(q, i) if i.image else 0.5 for q, i in zip(questions, items, strict=True)]
        return np.array(shares, dtype=np.float32)

    def yes_no(self, questions: Sequence[Question], items: Sequence[Item]) -> npt.NDArray[np.float32]:
        """As :meth:`judge`."""
        self.calls.append(("yes_no", len(items)))
        return np.array([self._overlap(q, i) for q, i in zip(questions, items, strict=True)], dtype=np.float32)

    def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[list[float]]:
        """Softmax over ten times the overlap."""
        self.calls.append(("select", len(questions)))
        shares = []
        for question, items in zip(questions, knowledge, strict=True):
            weights = np.exp([10 * self._overlap(question, item) for item in items])
            shares.append((weights / weights.sum()).tolist() if len(items) else [])
        return shares

    def item_tokens(self, item: Item) -> int:
        """Content words, and four for a picture."""
        return len(words(item.full_text)) + (4 if item.image else 0)

    def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[Generated]:
        """Last word of the best item; ``unknown`` without items."""
        self.calls.append(("generate", len(questions)))
        self.asked.extend(questions)
        answers = []
        for question, items in zip(questions, knowledge, strict=True):
            best = max(items, key=lambda item: self._overlap(question, item), default=None)
            said = (words(best.full_text) or ["unknown"])[-1] if best else "unknown"
            answers.append(Generated(said, " | ".join([question.text, *(item.id for item in items)])))
        return answers


NAMES = ["velora", "kimuna", "sadoti", "ferapo", "lumika", "toreno", "bipada", "nofuri", "gadeso", "wilani"]
DESIGNERS = ["moro", "tavi", "rulo", "keni", "pado", "sufa", "lito", "beru", "gano", "wemi"]
COUNTRIES = ["ardia", "belor", "corland", "dunmar", "estria", "fandor", "galia", "holm", "isara", "jorda"]


def write_picture(path: Path) -> str:
    """A file that stands for a picture (the fake reads its name only)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())
    return str(path)


def world(folder: Path) -> tuple[list[Item], list[Question]]:
    """Ten towers: a captioned picture and two facts each; a text question and a question with a picture each."""
    items, questions = [], []
    for name, designer, country in zip(NAMES, DESIGNERS, COUNTRIES, strict=True):
        kept, asked = (write_picture(folder / "images" / f"{name}-{view}.png") for view in (0, 1))
        items += [
            Item(f"{name}.view", text=f"a view of {name} tower", image=kept),
            Item(f"{name}.design", text=f"{name} tower was designed by {designer}"),
            Item(f"{name}.place", text=f"{name} tower stands in country {country}"),
        ]
        fact, place = (f"{name}.design",), (f"{name}.place",)
        questions += [
            Question(f"{name}-q1", f"Who designed {name} tower?", None, (designer,), fact, (), "text_fact"),
            Question(f"{name}-q2", "Which country is this?", asked, (country,), place, (), "question_picture"),
        ]
    return items, questions

"""VQAv2 (Goyal et al., CVPR 2017), OK-VQA (Marino et al., CVPR 2019) and A-OKVQA (Schwenk et al., ECCV 2022).

None of them has a knowledge base: :meth:`items` is empty, and questions name no gold. Pictures are COCO's. All ten
answers of a question are kept, so that a draw among them follows how often each was given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ra_blip.data.readers.json_stream import member
from ra_blip.data.readers.layout import Layout
from ra_blip.data.readers.raw import Raw, Unusable
from ra_blip.data.readers.reading import first_file
from ra_blip.records import Item, Question

COCO_FOLDERS = ("", "images", "Images/mscoco", "coco/images", "coco")
"""Where COCO's folders ``train2014``, ``val2014`` ... are looked for, relative to the root."""
Answers = dict[str, tuple[tuple[str, ...], str | None]]
"""The answers, and the category, of a question by its id."""


class CocoQuestions(Layout):
    """Questions about COCO's pictures, with ten answers each."""

    id_key = "question_id"
    answer_key: ClassVar[str] = "answer"
    """The field of a question that lists its answers."""
    category_key: ClassVar[str] = "answer_type"
    """The field of an annotation that is the question's category."""
    folders: ClassVar[tuple[str, ...]] = COCO_FOLDERS

    def items(self) -> Iterator[Item]:
        """Nothing: these data sets have no knowledge base."""
        return iter(())

    def _question(self, raw: Raw, split: str) -> Question:
        return Question(
            raw.identity("question_id"),
            raw.question("question"),
            self._picture(raw, split),
            answers=raw.answers(self.answer_key),
            category=raw.get("category"),
        )

    def _picture(self, raw: Raw, split: str) -> str:
        """The path of the picture inside COCO's folder, as ``val2014/COCO_val2014_000000000042.jpg``."""
        return raw.field("image", str)

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        found = {"id": question.id, "answers": raw.strings(self.answer_key)}
        return {**found, "category": question.category} if question.category else found

    def _asked(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._elements(self._path(self.root, split))

    def _answer_file(self, split: str) -> Path | None:
        """The annotations of a split's questions; None where they hold their answers themselves, or have none."""
        return None

    def _entries(self, split: str) -> Iterator[tuple[str, Raw]]:
        path = self._answer_file(split)
        if path is None or not self._is_there(path):
            yield from self._asked(split)
            return
        known = self._annotations(path)
        for where, raw in self._asked(split):
            answers, category = known.get(str(raw.get("question_id")), ((), None))
            yield where, Raw({**raw, self.answer_key: list(answers), "category": category})

    def _annotations(self, path: Path) -> Answers:
        """A file of annotations without what is not needed: some 250 MB of memory for VQAv2's training answers."""
        found: Answers = {}
        by_type = self.category_key == "question_type"
        in_words: dict[str, Any] = (member(path, "question_types") if by_type else None) or {}
        for where, raw in self._elements(path, "annotations"):
            try:
                name = raw.identity("question_id")
                if name in found:
                    raise Unusable("duplicate id", f"question {name!r} was answered before")
                answers = tuple(sys.intern(one.field("answer", str)) for one in raw.objects("answers"))
                category = raw.get(self.category_key)
                found[name] = answers, in_words.get(category, category) if isinstance(category, str) else None
            except Unusable as error:
                self.problems.report(error.kind, where, str(error))
        return found


class VQAv2(CocoQuestions):
    """visualqa.org's files ``v2_OpenEnded_mscoco_{subset}_questions.json`` and ``v2_mscoco_{subset}_annotations.json``.

    They lie in the root, or in ``Questions`` and ``Annotations``; the pictures in ``train2014``, ``val2014`` and
    ``test2015`` under one of :data:`COCO_FOLDERS`. Questions of ``test`` have no answers (``test-dev2015`` is read
    where the whole of ``test2015`` is not there). A question's ``category`` is its answer's type.
    """

    name = "vqav2"
    files: ClassVar[dict[str, str]] = {"train": "train2014", "val": "val2014", "test": "test2015"}
    prefix: ClassVar[str] = "v2_"

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        subset = cls.files[split]
        wanted = [f"{cls.prefix}OpenEnded_mscoco_{subset}_questions.json"]
        if subset == "test2015":
            wanted.append(f"{cls.prefix}OpenEnded_mscoco_test-dev2015_questions.json")
        names = [f"{folder}{name}" for name in wanted for folder in ("", "Questions/", "questions/", "annotations/")]
        return first_file(root, names) or root / wanted[0]

    def _asked(self, split: str) -> Iterator[tuple[str, Raw]]:
        return self._elements(self._path(self.root, split), "questions")

    def _answer_file(self, split: str) -> Path | None:
        name = f"{self.prefix}mscoco_{self.files[split]}_annotations.json"
        found = first_file(self.root, [f"{folder}{name}" for folder in ("", "Annotations/", "annotations/")])
        return None if self.files[split] == "test2015" else found or self.root / name

    def _picture(self, raw: Raw, split: str) -> str:
        subset = self.files[split]
        return f"{subset}/COCO_{subset}_{raw.field('image_id', int):012}.jpg"


class OKVQA(VQAv2):
    """OK-VQA's files, in the form of VQA v1: as :class:`VQAv2` without the ``v2_``; ``val2014`` is its ``test``.

    A question's ``category`` is one of OK-VQA's eleven, in words.
    """

    name = "okvqa"
    files: ClassVar[dict[str, str]] = {"train": "train2014", "test": "val2014"}
    prefix: ClassVar[str] = ""
    category_key = "question_type"


class AOKVQA(CocoQuestions):
    """``aokvqa_v1p0_{train,val,test}.json``; the pictures in ``train2017`` ... under one of :data:`COCO_FOLDERS`.

    Questions of ``test`` have no answers. References hold ``answers`` (the ten direct ones), ``choices``, ``choice``
    (the right one, in words) and ``difficult_direct_answer``.
    """

    name = "aokvqa"
    files: ClassVar[dict[str, str]] = {split: f"aokvqa_v1p0_{split}.json" for split in ("train", "val", "test")}
    answer_key = "direct_answers"

    def _question(self, raw: Raw, split: str) -> Question:
        correct = raw.get("correct_choice_idx")
        if correct is not None and not 0 <= raw.field("correct_choice_idx", int) < len(raw.strings("choices")):
            raise Unusable("malformed record", f"'correct_choice_idx' is {correct}, there are {len(raw['choices'])}")
        return super()._question(raw, split)

    def _picture(self, raw: Raw, split: str) -> str:
        return f"{split}2017/{raw.field('image_id', int):012}.jpg"

    def _reference(self, raw: Raw, question: Question) -> dict[str, Any]:
        choices, correct = raw.strings("choices"), raw.get("correct_choice_idx")
        return {
            **super()._reference(raw, question),
            "choices": choices,
            **({} if correct is None else {"choice": choices[correct]}),
            "difficult_direct_answer": raw.get("difficult_direct_answer") is True,
        }


class VQAv2Lavis(CocoQuestions):
    """VQAv2 in LAVIS's cache folder: ``coco/annotations/vqa_{train,val_eval,test}.json``, ``coco/images``.

    LAVIS trains on ``vqa_val.json`` as well; here it is never read for training, and stands for the validation where
    ``vqa_val_eval.json`` is not there. The latter has no answers: they come from the official annotations beside it.
    """

    name = "vqav2-lavis"
    files: ClassVar[dict[str, str]] = {"train": "vqa_train.json", "val": "vqa_val_eval.json", "test": "vqa_test.json"}
    folders: ClassVar[tuple[str, ...]] = ("coco/images",)
    annotation_folder: ClassVar[str] = "coco/annotations"
    answer_files: ClassVar[dict[str, str]] = {"val": "v2_mscoco_val2014_annotations.json"}
    instead: ClassVar[dict[str, str]] = {"val": "vqa_val.json"}

    @classmethod
    def _path(cls, root: Path, split: str) -> Path:
        folder = root / cls.annotation_folder
        names = [cls.files[split], *([cls.instead[split]] if split in cls.instead else [])]
        return first_file(folder, names) or folder / names[0]

    def _answer_file(self, split: str) -> Path | None:
        path = self._path(self.root, split)
        asked_apart = split in self.answer_files and path.name == self.files[split]
        return path.with_name(self.answer_files[split]) if asked_apart else None


class OKVQALavis(VQAv2Lavis):
    """OK-VQA in LAVIS's cache folder: ``okvqa/annotations/{okvqa_train,vqa_val_eval}.json``, ``coco/images``."""

    name = "okvqa-lavis"
    files: ClassVar[dict[str, str]] = {"train": "okvqa_train.json", "test": "vqa_val_eval.json"}
    annotation_folder: ClassVar[str] = "okvqa/annotations"
    answer_files: ClassVar[dict[str, str]] = {"test": "mscoco_val2014_annotations.json"}
    instead: ClassVar[dict[str, str]] = {}
    category_key = "question_type"


class AOKVQALavis(AOKVQA):
    """A-OKVQA in LAVIS's cache folder: ``aokvqa/annotations/aokvqa_v1p0_{train,val,test}.json``, ``coco/images``.

    As :class:`AOKVQA`; each question names its picture in ``image``.
    """

    name = "aokvqa-lavis"
    files: ClassVar[dict[str, str]] = {
        split: f"aokvqa/annotations/aokvqa_v1p0_{split}.json" for split in ("train", "val", "test")
    }
    folders: ClassVar[tuple[str, ...]] = ("coco/images",)

    def _picture(self, raw: Raw, split: str) -> str:
        return raw.field("image", str)

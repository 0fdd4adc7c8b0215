"""RA-BLIP: one frozen eye, a retriever, a reader and a ranker behind record-level calls."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ra_blip.config import ModelConfig, PrecisionConfig, VisionConfig
from ra_blip.models.attention import gather_kv
from ra_blip.models.bert_init import start_from_bert
from ra_blip.models.features import FeatureStore
from ra_blip.models.folder import locate, push_folder, read_folder, references, write_folder
from ra_blip.models.fusion import Retriever
from ra_blip.models.generator import build_generator
from ra_blip.models.llm import DTYPES
from ra_blip.models.load_report import LoadReport
from ra_blip.models.processor import Processor
from ra_blip.models.prompt import LABELS, Prompt, relevance_task
from ra_blip.models.ranker import Ranker
from ra_blip.models.reader import PromptBatch, Reader
from ra_blip.models.vision import VisionTower
from ra_blip.records import Item, Question


@dataclasses.dataclass(frozen=True)
class Generation:
    """An answer, the prompt that it was given to, the decoding options, how many tokens both have, and a remark."""

    answer: str
    prompt: str
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""


def _preprocessing(vision: VisionConfig) -> list[Any]:
    """What makes a tower's input of a picture, and which of its outputs is read."""
    made = [vision.image_size, vision.mean, vision.std, vision.layer]
    return made if vision.decode == "exact" else [*made, vision.decode]


def guided_text(question: Question, item: Item) -> str:
    """What a candidate is encoded with when the question guides the reading of its picture; a text stands alone."""
    return f"{question.text} {item.full_text}".strip() if item.image else item.full_text


def _matched(question: Question, item: Item) -> tuple[str, str] | None:
    """The picture and the words that matching compares; None where one of them is missing."""
    if question.image and item.full_text:
        return question.image, item.full_text
    return (item.image, question.text) if item.image else None


class RABlip(nn.Module):
    """The composition; parts by prefix: ``vision``, ``retriever``, ``reader``, ``ranker``.

    Args:
        config: all sizes and names.
        processor: tokenizers and picture transform.
        features: folder in which frozen picture features are kept; None keeps them in memory.
    """

    def __init__(self, config: ModelConfig, processor: Processor, features: Path | None = None) -> None:
        super().__init__()
        self.config, self.processor = config, processor
        self.vision = VisionTower(config.vision)
        words = len(processor.text)
        width, patches = self.vision.width, self.vision.patches
        self.retriever = Retriever(config.qformer, config.retriever, words, width)
        self.vision.model.to(DTYPES[config.precision.vision])
        pad, llm = processor.llm.pad_token_id, config.precision.llm
        generator = build_generator(config.generator, len(processor.llm), pad, processor.end_id, llm)
        self.reader = Reader(config.qformer, config.generator, words, width, patches, processor.image_id, generator)
        self.ranker = Ranker(generator.width)
        self._feature_folder = features
        self.load_report: LoadReport | None = None
        self._store: FeatureStore | None = None
        self._fingerprints: dict[str, tuple[list[tuple[int, int]], str]] = {}
        self._instruction = self._fusion = True
        self.references = references(self)

    @classmethod
    def build(cls, config: ModelConfig, texts: Iterable[str] | None = None, features: Path | None = None) -> RABlip:
        """A new model; tokenizers that have no name are trained on ``texts``. Raises as its parts do."""
        model = cls(config, Processor.build(config, texts), features)
        if config.qformer.text_init:
            start_from_bert(model.retriever.qformer, config.qformer.text_init, model.retriever.fusion)
            start_from_bert(model.reader.qformer, config.qformer.text_init)
        return model

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Sequence[str | Path],
        features: Path | None = None,
        *,
        checkpoint: Sequence[str | Path] = (),
        llm: str | None = None,
        text_tokenizer: str | None = None,
        precision: PrecisionConfig | None = None,
    ) -> RABlip:
        """A model in evaluation mode: ours, or one over released BLIP-2 or InstructBLIP weights.

        Args:
            source: a folder written by :meth:`save_pretrained`, or its hub id; or released weights in either layout,
                as :func:`ra_blip.models.released.load_released` takes them.
            features: folder in which frozen picture features are kept.
            checkpoint, llm, text_tokenizer, precision: for released weights, likewise.

        Raises:
            CheckpointError: nothing is there, it is damaged, or it is of no known layout.
        """
        from ra_blip.models.released import is_released, load_released

        if not isinstance(source, (str, Path)) or is_released(source):
            return load_released(source, checkpoint, llm, text_tokenizer, precision, features)
        place = locate(source)
        config, weights = read_folder(place)
        model = cls(config, Processor.load(config, place), features)
        weights.into(model)
        return model.eval()

    def save_pretrained(self, folder: str | Path, whole: bool = False) -> None:
        """Write ``config.json``, ``model.safetensors``, both tokenizers and a model card; all of them or nothing.

        A tower or LLM that has a hub name, and still the weights that it came with, is stored as that name and a hash,
        unless ``whole``. Raises :class:`OutputError`.
        """
        write_folder(Path(folder), self, self.processor, whole)

    def push_to_hub(self, repo_id: str, private: bool | None = None, whole: bool = False) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub -> its address; needs a login there."""
        return push_folder(self, repo_id, private, whole)

    def ablated(self, instruction: bool = True, fusion: bool = True) -> RABlip:
        """The same weights, shared and not copied, with parts off.

        Args:
            instruction: whether words guide how a prompt's pictures are read: to rank, to judge and to answer.
            fusion: whether picture and words of a question or item are embedded together; otherwise each alone, and
                the mean direction is taken. Such vectors need an index of their own.
        """
        other = copy.copy(self)
        other._instruction, other._fusion = instruction, fusion
        return other

    # ---------------------------------------------------------------- pictures

    def image_features(self, images: Sequence[str]) -> Tensor:
        """Frozen features (B, N, W) of pictures by path; each distinct picture is computed once."""
        return self.store(images, self.device)

    @property
    def store(self) -> FeatureStore:
        """Where the features of the frozen tower, as it is now, are kept."""
        vision = self.config.vision
        kept = self.config.precision.features
        made = [self.fingerprint_of("vision"), *_preprocessing(vision), kept]
        key = hashlib.sha256(json.dumps(made).encode()).hexdigest()
        if self._store is None or self._store.key != key:  # the tower was trained since
            self._store = FeatureStore(self._compute_features, key, self._feature_folder, dtype=DTYPES[kept])
        return self._store

    def _compute_features(self, images: Sequence[str]) -> Tensor:
        training = self.vision.training
        self.vision.eval()
        pixels = self.processor.pixels(images).to(self.device)
        if len(images) == 1:  # a convolution over a batch of one gives other bits; bits must not depend on company
            pixels = pixels.expand(2, -1, -1, -1)
        with torch.inference_mode():
            features = self.vision(pixels)[: len(images)]
        self.vision.train(training)
        return features  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- retrieval

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.ranker.dense.weight.device

    @property
    def dimension(self) -> int:
        """Width of the shared space."""
        return self.config.retriever.dimension

    @property
    def max_items(self) -> int:
        """Most items that one prompt can name."""
        return len(LABELS)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What made a vector: hashes of weights and preprocessing, and the dimension."""
        weights = hashlib.sha256((self.fingerprint_of("vision") + self.fingerprint_of("retriever")).encode())
        vision = self.config.vision
        made = [*_preprocessing(vision), self.config.retriever.text_length]
        words = json.dumps([made, self.processor.text.get_vocab()], sort_keys=True)
        preprocessing = hashlib.sha256(words.encode()).hexdigest()
        return {"weights": weights.hexdigest()[:16], "preprocessing": preprocessing[:16], "dimension": self.dimension}

    def fingerprint_of(self, part: str) -> str:
        """sha256 over the tensors of one part, by name; computed again only after one of them was written to."""
        tensors = sorted(self.get_submodule(part).state_dict(keep_vars=True).items())
        mark = [(value.data_ptr(), value._version) for _, value in tensors]
        if self._fingerprints.get(part, (None, ""))[0] != mark:
            digest = hashlib.sha256()
            for name, value in tensors:
                digest.update(name.encode())
                digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
            self._fingerprints[part] = (mark, digest.hexdigest())
        return self._fingerprints[part][1]

    @torch.inference_mode()
    def encode_question(self, questions: Sequence[Question]) -> Tensor:
        """Questions -> (B, D) unit vectors float32; one asked with a picture is read from both."""
        return self._encode([question.text for question in questions], [question.image for question in questions])

    @torch.inference_mode()
    def encode_items(self, items: Sequence[Item], questions: Sequence[Question] | None = None) -> Tensor:
        """Items -> (B, D) unit vectors float32.

        Args:
            items: texts, pictures and captioned pictures, mixed.
            questions: one an item, to re-score candidates: their pictures are then read under the question's
                guidance. Such vectors belong to one question and cannot be indexed.
        """
        if questions is None:
            texts = [item.full_text for item in items]
        else:
            texts = [guided_text(question, item) for question, item in zip(questions, items, strict=True)]
        return self._encode(texts, [item.image for item in items])

    def _encode(self, texts: Sequence[str], images: Sequence[str | None]) -> Tensor:
        distinct = list(dict.fromkeys(image for image in images if image is not None))
        features = self.image_features(distinct) if distinct else None
        return self.encode_records(texts, images, {image: row for row, image in enumerate(distinct)}, features)

    def encode_records(
        self, texts: Sequence[str], images: Sequence[str | None], pictures: dict[str, int], features: Tensor | None
    ) -> Tensor:
        """Texts, pictures and captioned pictures, mixed -> (B, D) unit vectors float32, with gradients.

        Args:
            texts: one a record, empty for none.
            images: one a record, None for none.
            pictures: row of each picture in ``features``.
            features: (U, N, W), each distinct picture once; its keys and values are computed once.
        """
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for i, (text, image) in enumerate(zip(texts, images, strict=True)):
            kinds.setdefault((image is not None, bool(text)), []).append(i)
        kv = None if features is None else self.retriever.kv(features)
        parts = []
        for (with_image, with_text), rows in kinds.items():
            ids, mask = None, None
            if with_text:
                ids, mask = (part.to(self.device) for part in self.processor.texts([texts[i] for i in rows]))
            if with_image:
                seen = gather_kv(kv, torch.tensor([pictures[str(images[i])] for i in rows], device=self.device))
                if ids is None or mask is None or self._fusion:
                    parts.append(self.retriever.picture_vectors(seen or [], ids, mask))
                else:
                    apart = self.retriever.picture_vectors(seen or []) + self.retriever.text_vectors(ids, mask)
                    parts.append(nn.functional.normalize(apart, dim=-1))
            else:
                assert ids is not None and mask is not None, "a record needs a text or a picture"
                parts.append(self.retriever.text_vectors(ids, mask))
        order = torch.tensor([i for rows in kinds.values() for i in rows], device=self.device)
        return torch.cat(parts)[order.argsort()]

    # ---------------------------------------------------------------- judging and answering

    @torch.inference_mode()
    def judge(self, questions: Sequence[Question], items: Sequence[Item], batch_size: int = 64) -> Tensor:
        """P(relevant) of zipped (question, item) pairs -> (B,)."""
        out = torch.zeros(len(items))
        order = sorted(range(len(items)), key=lambda i: len(questions[i].text) + len(items[i].full_text))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch, features = self._batch("answer", [questions[i] for i in rows], [[items[i]] for i in rows])
            states, _ = self.reader.encode(features, batch)
            out[rows] = self.ranker(Ranker.pool(states, batch.mask)).softmax(-1)[:, 1].float().cpu()
        return out

    @torch.inference_mode()
    def match(self, questions: Sequence[Question], items: Sequence[Item], batch_size: int = 64) -> Tensor:
        """P(picture and words belong together) of zipped pairs -> (B,), by the image-text matching head.

        A question's picture is matched with the item's words, else the item's picture with the question's words. Where
        there is no such pair the head has nothing to say: 0.5.
        """
        out = torch.full((len(items),), 0.5)
        pairs = [_matched(question, item) for question, item in zip(questions, items, strict=True)]
        rows = sorted((i for i, pair in enumerate(pairs) if pair is not None), key=lambda i: len(str(pairs[i])))
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            images, texts = zip(*(pair for i in part if (pair := pairs[i]) is not None), strict=True)
            text, mask = (ids.to(self.device) for ids in self.processor.texts(texts))
            pooled = self.retriever.fused(self.retriever.kv(self.image_features(images)), text, mask)
            out[part] = self.retriever.itm_head(pooled).softmax(-1)[:, 1].float().cpu()
        return out

    @torch.inference_mode()
    def yes_no(self, questions: Sequence[Question], items: Sequence[Item]) -> Tensor:
        """P(Yes) of zipped (question, item) pairs -> (B,): is this item relevant to the question? All in one batch.

        The softmax over the Yes and No logits of the first answer token, that is the sigmoid of their difference
        (RagVL); no other logit is computed.
        """
        if not items:
            return torch.zeros(0)
        asked = zip(questions, items, strict=True)
        batch, features = self._tokenised([self.processor.prompt(relevance_task(i), q, [i]) for q, i in asked])
        states, source = self.reader.prompt_states(features, batch)
        logits = self.reader.generator.first_logits(states, batch.mask, source, self.processor.yes_no_ids)
        return logits.softmax(-1)[:, 0].cpu()

    @property
    def says_yes_no(self) -> bool:
        """Whether :meth:`yes_no` means anything: after the stage ``rerank``, or with a generator not from scratch."""
        scratch = dataclasses.astuple(self.config.generator.from_scratch)
        return self.threshold is not None or not any(scratch)

    @property
    def threshold(self) -> float | None:
        """From which P(Yes) on an item is relevant, as the stage ``rerank`` measured it; None where it was not run."""
        return self.config.generator.threshold

    @torch.inference_mode()
    def select(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[list[float]]:
        """ASKG: which item is related to the question? One probability per item, summing to one; [] without items."""
        rows = [i for i, items in enumerate(knowledge) if items]
        out: list[list[float]] = [[] for _ in knowledge]
        if rows:
            asked = [questions[i] for i in rows]
            states, batch, source = self._read("select", asked, [knowledge[i] for i in rows])
            logits = self.reader.generator.first_logits(states, batch.mask, source)[:, self.processor.label_ids]
            for i, row in zip(rows, logits, strict=True):
                out[i] = row[: len(knowledge[i])].softmax(-1).tolist()
        return out

    @torch.inference_mode()
    def generate(self, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]) -> list[Generation]:
        """Answer questions from their knowledge, in prompt order; an empty list asks without knowledge."""
        prompts = [self.processor.prompt("answer", q, items) for q, items in zip(questions, knowledge, strict=True)]
        states, batch, source = self._read("answer", questions, knowledge)
        generator = self.reader.generator
        ids = generator.generate(states, batch.mask, source)
        made, lengths = generator.decoding(), ((ids != generator.pad).sum(-1).tolist(), batch.mask.sum(-1).tolist())
        return [
            Generation(answer, prompt.text, made, {"prompt": int(read), "answer": int(said)})
            for answer, prompt, said, read in zip(self.processor.decode(ids), prompts, *lengths, strict=True)
        ]

    def item_tokens(self, item: Item) -> int:
        """Positions that an item takes in a prompt: the tokens of its words and the soft tokens of its picture."""
        words = self.processor.llm(item.full_text, add_special_tokens=False)["input_ids"]
        return len(words) + (self.config.qformer.queries if item.image else 0)

    def _read(
        self, task: str, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]
    ) -> tuple[Tensor, PromptBatch, Tensor]:
        batch, features = self._batch(task, questions, knowledge)
        states, source = self.reader.prompt_states(features, batch)
        return states, batch, source

    def _batch(
        self, task: str, questions: Sequence[Question], knowledge: Sequence[Sequence[Item]]
    ) -> tuple[PromptBatch, Tensor | None]:
        prompts = [self.processor.prompt(task, q, items) for q, items in zip(questions, knowledge, strict=True)]
        return self._tokenised(prompts)

    def _tokenised(self, prompts: Sequence[Prompt]) -> tuple[PromptBatch, Tensor | None]:
        if not self._instruction:
            prompts = [dataclasses.replace(prompt, guides=("",) * len(prompt.guides)) for prompt in prompts]
        pictures: dict[str, int] = {}
        batch = self.processor.prompts(prompts, pictures).to(self.device)
        return batch, self.image_features(list(pictures)) if pictures else None

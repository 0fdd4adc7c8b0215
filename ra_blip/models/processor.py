"""Records to tensors: picture transform, tokenizers, prompts. Saved with the weights; the one place that pads."""

from __future__ import annotations

import dataclasses
import json
import os
import string
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ra_blip.config import ModelConfig
from ra_blip.errors import CheckpointError
from ra_blip.images import open_image, resize
from ra_blip.models.prompt import IMAGE, LABELS, LAYOUTS, Prompt
from ra_blip.models.reader import PromptBatch, Read
from ra_blip.records import Item, Question

PIXEL_CACHE = 256 << 20  # bytes of decoded pictures kept
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "[DEC]", IMAGE]


class Processor:
    """Picture transform and both tokenizers.

    Args:
        config: sizes, lengths and prompt layout.
        text: the Q-Former's tokenizer (BERT style: first token pooled, padding on the right).
        llm: the generator's tokenizer.
    """

    def __init__(self, config: ModelConfig, text: Any, llm: Any) -> None:
        self.config, self.text, self.llm = config, text, llm
        for tokenizer in (text, llm):
            known = set(tokenizer.get_vocab())
            extra = [token for token in ("[DEC]", IMAGE) if token not in known]
            if extra:
                tokenizer.add_tokens(extra, special_tokens=True)
        size = config.vision.image_size
        self._pixels = lru_cache(PIXEL_CACHE // (3 * size * size))(lambda path, mark: resize(open_image(path), size))
        self.image_id: int = llm.convert_tokens_to_ids(IMAGE)
        self.dec_id: int = text.convert_tokens_to_ids("[DEC]")
        self.label_ids = [llm(label, add_special_tokens=False).input_ids[-1] for label in LABELS]

    @classmethod
    def build(cls, config: ModelConfig, texts: Iterable[str] | None = None) -> Processor:
        """From names or folders in ``config.tokenizer``, training those that have none on ``texts``.

        Raises:
            CheckpointError: a named tokenizer cannot be loaded, or none is named and there are no texts.
        """
        wanted = config.tokenizer
        if wanted.text and wanted.llm:
            return cls(config, _load(wanted.text), _load(wanted.llm))
        if texts is None:
            raise CheckpointError("model.tokenizer: give 'text' and 'llm', or a data source with texts to train on")
        words = list(texts)
        text = _load(wanted.text) if wanted.text else train_tokenizer(words, wanted.vocabulary, "bert")
        llm = _load(wanted.llm) if wanted.llm else train_tokenizer(words, wanted.vocabulary, "t5")
        return cls(config, text, llm)

    @classmethod
    def load(cls, config: ModelConfig, folder: Path) -> Processor:
        """From a model folder. Raises :class:`CheckpointError` where its tokenizers are missing."""
        return cls(config, _load(str(folder / "text_tokenizer")), _load(str(folder / "llm_tokenizer")))

    def save(self, folder: Path) -> None:
        """Both tokenizers, as Hugging Face folders."""
        self.text.save_pretrained(folder / "text_tokenizer")
        self.llm.save_pretrained(folder / "llm_tokenizer")

    def pixels(self, images: Sequence[str]) -> Tensor:
        """Open and resize pictures -> (B, 3, S, S) uint8. Raises :class:`ImageError` naming the file."""
        return torch.from_numpy(np.stack([self._pixels(image, _mark(image)) for image in images]))

    def texts(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Q-Former tokens of texts -> ids (B, L) and mask (B, L), padded to the longest of them."""
        limit = length or self.config.retriever.text_length
        encoded = self.text(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return encoded.input_ids, encoded.attention_mask

    def targets(self, answers: Sequence[str]) -> Tensor:
        """LLM labels (B, A), -100 where padded."""
        limit = self.config.generator.answer_length
        encoded = self.llm(list(answers), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids.masked_fill(encoded.attention_mask == 0, -100)

    def first_tokens(self, answers: Sequence[str]) -> Tensor:
        """(B,) the first LLM token of each answer, the end token for an empty one."""
        encoded = self.llm(list(answers), add_special_tokens=False).input_ids if answers else []
        return torch.tensor([ids[0] if ids else self.llm.eos_token_id for ids in encoded], dtype=torch.long)

    def decode(self, ids: Tensor) -> list[str]:
        """Token ids (B, A) -> strings."""
        return [text.strip() for text in self.llm.batch_decode(ids, skip_special_tokens=True)]

    def prompt(self, task: str, question: Question, items: Sequence[Item]) -> Prompt:
        """One prompt; item texts are cut evenly so that the question is never cut.

        Args:
            task: ``answer`` or ``select``, see ``models/prompt.py``.
            question: asked, with its own picture in the first slot where it has one.
            items: knowledge in prompt order.
        """
        generator = self.config.generator
        room = generator.prompt_length - len(self.llm.tokenize(question.text)) - 8
        room -= min(generator.image_slots, len(items) + 1) * self.config.qformer.queries
        fitted = [_cut(item, self.llm, max(room // max(len(items), 1) - 8, 8)) for item in items]
        layout = LAYOUTS[generator.layout]
        return layout(task, question, fitted, generator.image_slots, generator.from_scratch.overlap_marks)

    def prompts(self, prompts: Sequence[Prompt], pictures: dict[str, int]) -> PromptBatch:
        """Tokenise prompts.

        Args:
            prompts: as :meth:`prompt` makes them.
            pictures: row of each picture in the batch's features; new pictures are added in order.
        """
        block = IMAGE * self.config.qformer.queries
        texts = [prompt.text.replace(IMAGE, block) for prompt in prompts]
        encoded = self.llm(texts, padding=True, return_tensors="pt")
        joint = self.config.generator.layout == "release"
        reads: dict[Read, int] = {}
        uses = []
        for prompt in prompts:
            blocks = [prompt.images] if joint and prompt.images else [(image,) for image in prompt.images]
            uses += [reads.setdefault(read, len(reads)) for read in zip(blocks, prompt.guides, strict=True)]
        width = max((len(images) for images, _ in reads), default=1)
        slots = torch.full((len(reads), width), -1)
        for row, (images, _) in enumerate(reads):
            slots[row, : len(images)] = torch.tensor([pictures.setdefault(i, len(pictures)) for i in images])
        none = torch.zeros(0, 1, dtype=torch.long)
        guide, guide_mask = self.texts([words for _, words in reads]) if reads else (none, none)
        return PromptBatch(
            encoded.input_ids, encoded.attention_mask, list(reads), slots, guide, guide_mask, torch.tensor(uses)
        )


def _mark(path: str) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none, which opening it reports."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _cut(item: Item, tokenizer: Any, budget: int) -> Item:
    """The item with its text cut to ``budget`` LLM tokens; short texts, the usual case, are not tokenised."""
    words = item.full_text
    if len(words) <= budget:  # a token is at least one character
        return item
    offsets = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    if len(offsets) <= budget:
        return item
    return dataclasses.replace(item, title=None, text=words[: offsets[budget - 1][1]])


def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None


def train_tokenizer(texts: Iterable[str], vocabulary: int, style: str) -> Any:
    """A small byte-pair tokenizer on the run's own texts.

    Args:
        texts: training corpus.
        vocabulary: number of tokens.
        style: ``bert`` (lower case, [CLS] .. [SEP]) or ``t5`` (case kept, .. </s>).

    Returns:
        a Hugging Face fast tokenizer.
    """
    import tokenizers as tk
    from transformers import PreTrainedTokenizerFast

    normalizers = [tk.normalizers.NFC()] + ([tk.normalizers.Lowercase()] if style == "bert" else [])
    normalizer, splitter = tk.normalizers.Sequence(normalizers), tk.pre_tokenizers.BertPreTokenizer()
    # Pieces inside a word are marked only where they must be put together again. Unmarked, a syllable is one token
    # wherever it stands in a name, which a small model learns sooner.
    prefix = "" if style == "bert" else "##"
    words = [normalizer.normalize_str(text) for text in texts]
    inner = tk.Tokenizer(_train_pairs(words, vocabulary, splitter, prefix))
    inner.normalizer, inner.pre_tokenizer = normalizer, splitter
    decimals = tk.decoders.Replace(tk.Regex(r"(?<=\d)\. (?=\d)"), ".")  # the splitter parts 1.5 as it parts sentences
    inner.decoder = tk.decoders.Sequence([tk.decoders.WordPiece(prefix="##"), tk.decoders.Fuse(), decimals])
    inner.add_special_tokens(SPECIALS)
    parts = "[CLS] $A [SEP]" if style == "bert" else "$A </s>"
    used = ["[CLS]", "[SEP]"] if style == "bert" else ["</s>"]
    inner.post_processor = tk.processors.TemplateProcessing(
        single=parts, special_tokens=[(token, inner.token_to_id(token)) for token in used]
    )
    end = {"sep_token": "[SEP]", "cls_token": "[CLS]"} if style == "bert" else {"eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", **end)


def _train_pairs(texts: Sequence[str], vocabulary: int, splitter: Any, prefix: str) -> Any:
    """Byte-pair model of normalised texts; the same texts give the same model.

    The trainer meets words in random order and numbers the pieces inside them as they come, and ties between pairs
    follow those numbers. Given as special tokens in a tokenizer of its own, the pieces have their numbers beforehand.
    """
    import tokenizers as tk

    spaced = {word for text in texts for word in text.split()}
    words = {piece for word in spaced for piece, _ in splitter.pre_tokenize_str(word)}
    letters = sorted({*string.ascii_lowercase, *string.digits}.union(*(word[1:] if prefix else word for word in words)))
    inside = [f"{prefix}{letter}" for letter in letters]
    inner = tk.Tokenizer(tk.models.BPE(unk_token="[UNK]", continuing_subword_prefix=prefix))
    inner.pre_tokenizer = splitter
    trainer = tk.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIALS, *inside],
        initial_alphabet=[*LABELS, *string.ascii_lowercase, *string.digits, *"[]|:;*^+?.,'-"],
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    learnt = json.loads(inner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return tk.models.BPE(learnt["vocab"], merges, unk_token="[UNK]", continuing_subword_prefix=prefix)

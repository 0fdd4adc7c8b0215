"""Records to tensors: picture transform, tokenizers, prompts. Saved with the weights; the one place that pads."""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ra_blip.config import ModelConfig
from ra_blip.containers import stamp
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.llm import llm_config
from ra_blip.models.pixels import Pixels, pixels
from ra_blip.models.prompt import IMAGE, LABELS, LAYOUTS, YES_NO, Prompt, ask
from ra_blip.models.reader import PromptBatch, Read
from ra_blip.records import Item, Question

PIXEL_CACHE = 1 << 30  # bytes of decoded pictures kept: some steps of a run, which are opened ahead
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "[DEC]", IMAGE]


class Processor:
    """Picture transform and both tokenizers.

    Args:
        config: sizes, lengths and prompt layout.
        text: the Q-Former's tokenizer (BERT style: first token pooled, padding on the right).
        llm: the generator's tokenizer.

    Attributes:
        workers: threads that open the pictures of a batch; 0 opens them one after another.
    """

    workers = 0

    def __init__(self, config: ModelConfig, text: Any, llm: Any) -> None:
        self.config, self.text, self.llm = config, text, llm
        for tokenizer, token in ((text, "[DEC]"), (llm, IMAGE)):
            if token not in tokenizer.get_vocab():
                tokenizer.add_tokens([token], special_tokens=True)
        if llm.pad_token is None:  # Llama's, say; masks tell padding from text
            llm.pad_token = llm.eos_token
        size = config.vision.image_size
        decode = config.vision.decode
        self._pixels = lru_cache(PIXEL_CACHE // (3 * size * size))(lambda name, mark: pixels(name, size, decode))
        self.image_id: int = llm.convert_tokens_to_ids(IMAGE)
        self.dec_id: int = text.convert_tokens_to_ids("[DEC]")

    @classmethod
    def build(cls, config: ModelConfig, texts: Iterable[str] | None = None) -> Processor:
        """From names or folders in ``config.tokenizer``, training those that have none on ``texts``.

        Raises:
            CheckpointError: a named tokenizer cannot be loaded, or none is named and there are no texts.
        """
        wanted = config.tokenizer
        if wanted.text and wanted.llm:
            return cls(config, load_tokenizer(wanted.text), load_tokenizer(wanted.llm))
        if texts is None:
            raise CheckpointError("model.tokenizer: give 'text' and 'llm', or a data source with texts to train on")
        words = list(texts)
        text = load_tokenizer(wanted.text) if wanted.text else train_tokenizer(words, wanted.vocabulary, "bert")
        llm = load_tokenizer(wanted.llm) if wanted.llm else train_tokenizer(words, wanted.vocabulary, "t5")
        return cls(config, text, llm)

    @classmethod
    def load(cls, config: ModelConfig, folder: Path) -> Processor:
        """From a model folder. Raises :class:`CheckpointError` where its tokenizers are missing."""
        text, llm = (load_tokenizer(str(folder / f"{kind}_tokenizer")) for kind in ("text", "llm"))
        return cls(config, text, llm)

    def save(self, folder: Path) -> None:
        """Both tokenizers, as Hugging Face folders."""
        self.text.save_pretrained(folder / "text_tokenizer")
        self.llm.save_pretrained(folder / "llm_tokenizer")

    @cached_property
    def causal(self) -> bool:
        """Whether the LLM goes on writing behind its prompt, instead of answering from an encoder."""
        return not llm_config(self.config.generator).is_encoder_decoder

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer. Raises :class:`ConfigError` where the configured one is not a token."""
        end = self.config.generator.end
        return self._token("end", end) if end else int(self.llm.eos_token_id)

    @cached_property
    def label_ids(self) -> list[int]:
        """The token that each reference's letter is answered with."""
        return [self.llm(self._blank + label, add_special_tokens=False).input_ids[-1] for label in LABELS]

    @cached_property
    def yes_no_ids(self) -> tuple[int, int]:
        """The first tokens of Yes and No. Raises :class:`ConfigError` where they are one and the same."""
        yes, no = self.first_tokens(YES_NO).tolist()
        if yes == no:
            raise ConfigError("the LLM's tokenizer begins Yes and No with one token: relevance cannot be read off it")
        return yes, no

    @cached_property
    def _blank(self) -> str:
        """What a causal LLM's answer begins with where its tokenizer writes a word otherwise inside a text."""
        once, twice = self.llm(["a", "a a"], add_special_tokens=False).input_ids
        return " " if self.causal and twice != once + once else ""

    def _token(self, key: str, token: str) -> int:
        if token not in self.llm.get_vocab():
            raise ConfigError(f"model.generator.{key}: {token!r} is not a token of the LLM's tokenizer")
        return int(self.llm.convert_tokens_to_ids(token))

    def pixels(self, images: Sequence[str]) -> Tensor:
        """Open and resize pictures -> (B, 3, S, S) uint8. Raises :class:`ImageError` naming the file."""
        if self.workers and len(images) > 1:
            with ThreadPoolExecutor(self.workers) as pool:
                return torch.from_numpy(np.stack(list(pool.map(self.open, images))))
        return torch.from_numpy(np.stack([self.open(image) for image in images]))

    def open(self, image: str) -> Pixels:
        """One picture -> (3, S, S), remembered for a while; from any thread. Raises :class:`ImageError`."""
        return self._pixels(image, stamp(image))

    def texts(self, texts: Sequence[str], length: int | None = None, cut: str = "right") -> tuple[Tensor, Tensor]:
        """Q-Former tokens of texts -> ids (B, L) and mask (B, L), padded to the longest; ``cut`` where too long."""
        limit = length or self.config.retriever.text_length
        self.text.truncation_side = cut
        encoded = self.text(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return encoded.input_ids, encoded.attention_mask

    def targets(self, answers: Sequence[str]) -> Tensor:
        """LLM labels (B, A), -100 where padded."""
        limit = self.config.generator.answer_length
        if self.causal:
            rows = self.llm([self._blank + answer for answer in answers], add_special_tokens=False).input_ids
            rows = [[*ids[: limit - 1], self.end_id] for ids in rows]
        else:
            rows = self.llm(list(answers), truncation=True, max_length=limit).input_ids
        return _padded(rows, -100)

    def first_tokens(self, answers: Sequence[str]) -> Tensor:
        """(B,) the first LLM token of each answer, the end token for an empty one."""
        known = [self._blank + answer if answer else "" for answer in answers]
        encoded = self.llm(known, add_special_tokens=False).input_ids if known else []
        return torch.tensor([ids[0] if ids else self.end_id for ids in encoded], dtype=torch.long)

    def decode(self, ids: Tensor) -> list[str]:
        """Token ids (B, A) -> strings."""
        ids = ids.masked_fill(ids == self.end_id, self.llm.pad_token_id)  # an end token may be an ordinary one
        return [text.strip() for text in self.llm.batch_decode(ids, skip_special_tokens=True)]

    def prompt(self, task: str, question: Question, items: Sequence[Item]) -> Prompt:
        """One prompt; item texts are cut evenly so that the question is never cut.

        Args:
            task: ``answer`` or ``select``, see ``models/prompt.py``.
            question: asked, with its own picture in the first slot where it has one.
            items: knowledge in prompt order.
        """
        generator = self.config.generator
        asked = ask(task, question.text, generator.template)
        room = generator.prompt_length - len(self.llm.tokenize(asked)) - 8
        room -= min(generator.image_slots, len(items) + 1) * self.config.qformer.queries
        fitted = [_cut(item, self.llm, max(room // max(len(items), 1) - 8, 8)) for item in items]
        layout, marks = LAYOUTS[generator.layout], generator.from_scratch.overlap_marks
        made = layout(task, question, fitted, generator.image_slots, marks, generator.template)
        if generator.guide == "prompt":
            words = " ".join(made.text.replace(IMAGE, " ").split())
            made = dataclasses.replace(made, guides=(words,) * len(made.guides))
        return made

    def prompts(self, prompts: Sequence[Prompt], pictures: dict[str, int]) -> PromptBatch:
        """Tokenise prompts. A picture at the very front stands before whatever the tokenizer puts there.

        Args:
            prompts: as :meth:`prompt` makes them.
            pictures: row of each picture in the batch's features; new pictures are added in order.
        """
        rows = self._prompt_ids([prompt.text for prompt in prompts])
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
        cut = "left" if self.config.generator.guide == "prompt" else "right"  # a prompt ends with the question
        guide, guide_mask = self.texts([words for _, words in reads], cut=cut) if reads else (none, none)
        ids, mask = _padded(rows, self.llm.pad_token_id), _padded([[1] * len(row) for row in rows], 0)
        return PromptBatch(ids, mask, list(reads), slots, guide, guide_mask, torch.tensor(uses))

    def _prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """LLM tokens of prompts with their soft-token positions: leading picture, begin token, words.

        Source: where BLIP-2 and InstructBLIP put the begin token; Vicuna's is ``</s>``, whatever its tokenizer says.
        """
        queries, begin = self.config.qformer.queries, self.config.generator.begin
        words = [text.removeprefix(IMAGE).lstrip().replace(IMAGE, IMAGE * queries) for text in texts]
        encoded = self.llm(words, add_special_tokens=not begin).input_ids if words else []
        first = [self._token("begin", begin)] if begin else []
        leading = [[self.image_id] * queries if text.startswith(IMAGE) else [] for text in texts]
        return [[*picture, *first, *ids] for picture, ids in zip(leading, encoded, strict=True)]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids -> (B, T), filled up on the right."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=fill)


def _cut(item: Item, tokenizer: Any, budget: int) -> Item:
    """The item with its text cut to ``budget`` LLM tokens; short texts, the usual case, are not tokenised."""
    words = item.full_text
    if len(words) <= budget:  # a token is at least one character
        return item
    offsets = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    if len(offsets) <= budget:
        return item
    return dataclasses.replace(item, title=None, text=words[: offsets[budget - 1][1]])


def load_tokenizer(name: str) -> Any:
    """A Hugging Face tokenizer by name or folder. Raises :class:`CheckpointError`."""
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

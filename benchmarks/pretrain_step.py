"""Stage 1 (ITC, ITM, ITG), forward and backward, against transformers' Q-Former run in LAVIS's order of passes.

    python -m benchmarks.pretrain_step [--dtypes fp32 bf16] [--batch 4] [--rounds 5] [--out FILE]

Real size, one CPU thread, CPU time, picture features given. Both sides have the same weights and take turns in one
process; their losses are compared. A figure is the median over the rounds of theirs / ours.

LAVIS's order: the queries over the pictures; the captions alone; the captions as a decoder over the keys and values
that the queries left in the first pass; queries and captions together for each pair, its wrong text and its wrong
picture, where keys and values of three pictures a pair are built again. Ours builds them once, and reads queries and
caption of the captioning pass together.

- full: captions of 32 tokens on both sides
- trimmed: captions of at most 14 tokens, which LAVIS pads to 32
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

from benchmarks.qformer import DTYPES, FEATURES, PATCHES, QUERIES, WIDTH, filled
from ra_blip.config import QFormerConfig
from ra_blip.models.attention import gather_kv
from ra_blip.models.qformer import QFormer
from ra_blip.records import write_text
from tests.hf_weights import qformer_state

WORDS, LENGTH, TEMPERATURE = 30523, 32, 0.07
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}  # of the losses
CASES = {"full": LENGTH, "trimmed": 14}


def losses(pictures: Tensor, texts: Tensor, matching: Tensor, words: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The three losses of both sides: (B, Q, D) queries, (B, D) texts, (3B, D) pooled pairs, (B, L, V) logits."""
    scores = torch.einsum("bqd,cd->bcq", F.normalize(pictures, dim=-1), F.normalize(texts, dim=-1)).amax(-1)
    target = torch.arange(len(ids))
    itc = F.cross_entropy(scores.float() / TEMPERATURE, target)
    matched = (torch.arange(3 * len(ids)) < len(ids)).long()
    itm = F.cross_entropy(matching[:, :2].float(), matched)
    wanted = ids.masked_fill(mask == 0, -100)[:, 1:]
    itg = F.cross_entropy(words[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=-100)
    return itc + itm + itg


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Pictures and texts of the matching pass: each pair, then a wrong text for each, then a wrong picture."""
    own = torch.arange(count)
    return torch.cat([own, own, own.roll(1)]), torch.cat([own, own.roll(1), own])


class Peer:
    """Transformers' modules in LAVIS's order."""

    def __init__(self, model: Any, queries: Tensor) -> None:
        self.model, self.queries = model, queries
        self.cache: list[Tensor] = []
        for layer in model.encoder.layer:
            for part in (layer.attention.attention.key, layer.attention.attention.value):
                part.register_forward_hook(lambda module, given, out: self.cache.append(out))

    def __call__(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Loss of one step."""
        count = len(ids)
        self.cache.clear()
        asked = self.queries.expand(count, -1, -1)
        pictures = self.model(None, None, query_embeds=asked, encoder_hidden_states=features).last_hidden_state
        cache = list(self.cache)
        texts = self.model(ids, mask).last_hidden_state[:, 0]
        words = self._decode(cache, ids, mask) @ self.model.embeddings.word_embeddings.weight.T
        first, second = pairs(count)
        seen = torch.cat([mask.new_ones(3 * count, QUERIES), mask[second]], dim=1)
        matching = self.model(
            ids[second], seen, query_embeds=asked.repeat(3, 1, 1), encoder_hidden_states=features[first]
        ).last_hidden_state[:, :QUERIES]
        return losses(pictures, texts, matching.mean(1), words, ids, mask)

    def _decode(self, cache: list[Tensor], ids: Tensor, mask: Tensor) -> Tensor:
        """Captions over the keys and values of the queries, causally."""
        count, length = ids.shape
        causal = torch.ones(length, length, dtype=torch.bool).tril() & (mask[:, None] == 1)
        allowed = torch.cat([causal.new_ones(count, length, QUERIES), causal], dim=2)[:, None]
        x = self.model.embeddings(input_ids=ids)
        for number, layer in enumerate(self.model.encoder.layer):
            attention = layer.attention.attention
            keys, values = cache[2 * number : 2 * number + 2]
            made = [
                attention.query(x),
                *(torch.cat([a, b], 1) for a, b in ((keys, attention.key(x)), (values, attention.value(x)))),
            ]
            q, k, v = (part.unflatten(-1, (12, -1)).transpose(1, 2) for part in made)
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)
            x = layer.attention.output(read, x)
            x = layer.output(layer.intermediate(x), x)
        return x


def ours_step(model: QFormer, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Loss of one step: keys and values once, queries and caption of the captioning pass together."""
    kv = model.cross_kv(features)
    generated = model("generate", kv=kv, text=ids, text_mask=mask)
    texts = model("text", text=ids, text_mask=mask).text[:, 0]
    assert model.words is not None
    words = generated.text @ model.words.weight.T
    first, second = pairs(len(ids))
    matching = model("instruct", kv=gather_kv(kv, first), text=ids[second], text_mask=mask[second]).queries
    return losses(generated.queries, texts, matching.mean(1), words, ids, mask)


def sides(dtype: torch.dtype, batch: int, longest: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor], list[Any]]:
    """A step of theirs, a step of ours, and the modules whose gradients they leave."""
    with torch.device("meta"):
        theirs: Any = InstructBlipQFormerModel(InstructBlipQFormerConfig(vocab_size=WORDS))
        ours = QFormer(QFormerConfig(dropout=0.0), WORDS, FEATURES)
    filled(theirs, dtype, 0)
    theirs.embeddings.position_ids = torch.arange(theirs.config.max_position_embeddings)[None]
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(1, QUERIES, WIDTH, generator=generator).to(dtype)
    weights = {name: value.clone() for name, value in qformer_state(theirs.state_dict(), queries).items()}
    ours.load_state_dict(weights, assign=True)
    ours.eval().requires_grad_(True)
    queries.requires_grad_(True)
    features = torch.randn(batch, PATCHES, FEATURES, generator=generator).to(dtype)
    ids = torch.randint(1, WORDS, (batch, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < (longest - torch.arange(batch) % 4)[:, None]).long()
    peer = Peer(theirs, queries)
    return (
        lambda: peer(features, ids, mask),
        lambda: ours_step(ours, features, ids[:, :longest], mask[:, :longest]),
        [theirs, ours],
    )


def measure(dtype: torch.dtype, batch: int, longest: int, rounds: int) -> dict[str, float]:
    """Median ratio with the lowest and highest round, seconds a step, and how the losses differ."""
    *steps, modules = sides(dtype, batch, longest)
    spent: list[list[float]] = [[], []]
    loss = [0.0, 0.0]
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            modules[side].zero_grad(set_to_none=True)
            begun = time.process_time()
            value = steps[side]()
            value.backward()  # type: ignore[no-untyped-call]
            spent[side].append(time.process_time() - begun)
            loss[side] = float(value.detach())
    theirs, ours = (seconds[1:] for seconds in spent)  # the first round is for warming
    ratios = [before / after for before, after in zip(theirs, ours, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "theirs_seconds": round(statistics.median(theirs), 2),
        "ours_seconds": round(statistics.median(ours), 2),
        "difference": abs(loss[0] - loss[1]) / abs(loss[0]),
    }


def main() -> None:
    """Measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": 1}
    found |= {"batch": given.batch, "rounds": given.rounds, "load": os.getloadavg()[0]}
    for name in given.dtypes:
        found[name] = {}
        for case in given.cases:
            values = measure(DTYPES[name], given.batch, CASES[case], given.rounds)
            found[name][case] = values
            print(name, case, values, flush=True)
            assert values["difference"] <= TOLERANCE[name], f"{case} gives another loss than transformers"
    if given.out:
        write_text(given.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

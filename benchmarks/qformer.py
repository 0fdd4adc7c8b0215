"""The Q-Former and an EVA block against transformers' classes with the same weights, at real size, on one CPU thread.

    python -m benchmarks.qformer [--dtypes fp32 bf16] [--rounds 9] [--out FILE]

Both sides run turn about in one process and are timed in CPU time; a case's figure is the median over the rounds of
theirs / ours. Outputs are compared in the same run. Absolute times say what machine it was, the ratios are the result.

- instruct: 4 pictures with 32 text tokens each, padded (InstructBLIP); the features are read once
- image: 4 pictures without text (BLIP-2)
- text: 4 texts alone
- questions: one picture with 8 questions; keys and values of the picture are computed once
- eye: 2 blocks of ViT-g on 2 pictures
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
import transformers
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, InstructBlipQFormerConfig, InstructBlipQFormerModel

from ra_blip.config import QFormerConfig
from ra_blip.models.attention import gather_kv
from ra_blip.models.eva import EvaConfig, EvaViT
from ra_blip.models.qformer import QFormer
from ra_blip.records import write_text
from tests.hf_weights import eva_state, qformer_state

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}  # of the outputs' size
LENGTHS = (32, 30, 24, 20)  # text tokens of the four samples
WORDS, QUERIES, PATCHES, FEATURES, WIDTH = 1000, 32, 257, 1408, 768

Case = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # theirs, ours


def filled(module: Any, dtype: torch.dtype, seed: int) -> Any:
    """Random weights about as large as trained ones, biases included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.to_empty(device="cpu").named_parameters():
        norm = "norm" in name.lower()
        parameter.data.uniform_(-0.3 if norm else -0.04, 0.3 if norm else 0.04, generator=generator)
        parameter.data += norm and name.endswith("weight")
    return module.to(dtype).eval()


def qformers(dtype: torch.dtype) -> tuple[Any, QFormer, QFormer, Tensor]:
    """Theirs; ours with text states and with text as a guide alone; the queries."""
    config = InstructBlipQFormerConfig(vocab_size=WORDS)
    with torch.device("meta"):
        theirs: Any = InstructBlipQFormerModel(config)
        states = QFormer(QFormerConfig(), WORDS, FEATURES)
        guide = QFormer(QFormerConfig(), WORDS, FEATURES, text="guide")
    filled(theirs, dtype, 0)
    theirs.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    queries = torch.randn(1, QUERIES, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = qformer_state(theirs.state_dict(), queries)
    for ours in (states, guide):
        ours.load_state_dict(weights, assign=True)
        ours.eval()
    return theirs, states, guide, queries


def qformer_cases(dtype: torch.dtype) -> dict[str, Case]:
    """One pass each of theirs and ours over the same input, returning what is read of it."""
    theirs, states, guide, queries = qformers(dtype)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4, PATCHES, FEATURES, generator=generator).to(dtype)
    text = torch.randint(1, WORDS, (8, max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS * 2)[:, None]).long()

    def hugging_face(pictures: Tensor | None, rows: int, worded: bool) -> Tensor:
        asked = None if pictures is None else queries.expand(rows, -1, -1)
        seen = torch.cat([mask.new_ones(rows, QUERIES if asked is not None else 0), mask[:rows]], dim=1)
        out = theirs(
            input_ids=text[:rows] if worded else None,
            attention_mask=seen if worded else None,
            query_embeds=asked,
            encoder_hidden_states=pictures,
        ).last_hidden_state
        return out[:, :QUERIES] if pictures is not None else out[mask[:rows] == 1]  # type: ignore[no-any-return]

    repeated = features[:1].repeat(8, 1, 1)

    def questions() -> Tensor:
        kv = gather_kv(guide.cross_kv(features[:1]), torch.zeros(8, dtype=torch.long))
        return guide("instruct", kv, text=text, text_mask=mask).queries  # type: ignore[return-value]

    def words() -> Tensor:
        found = states("text", text=text[:4], text_mask=mask[:4]).text
        assert found is not None
        return found[mask[:4] == 1]

    return {
        "instruct": (
            lambda: hugging_face(features, 4, True),
            lambda: guide("instruct", features, text=text[:4], text_mask=mask[:4]).queries,
        ),
        "image": (lambda: hugging_face(features, 4, False), lambda: guide("image", features).queries),
        "text": (lambda: hugging_face(None, 4, True), words),
        "questions": (lambda: hugging_face(repeated, 8, True), questions),
    }


def eye_case(dtype: torch.dtype) -> Case:
    """Two blocks of the tower, with the norm that follows it."""
    with torch.device("meta"):
        theirs: Any = Blip2VisionModel(Blip2VisionConfig(num_hidden_layers=2))
        ours = EvaViT(EvaConfig(layers=2))
    filled(theirs, dtype, 3)
    ours.load_state_dict(eva_state(theirs.state_dict()), assign=True)
    norm: nn.Module = theirs.post_layernorm
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(4)).to(dtype)
    return lambda: theirs(pixels).last_hidden_state, lambda: norm(ours.eval()(pixels))


def measure(case: Case, rounds: int) -> dict[str, float | bool]:
    """Median ratio theirs / ours with the lowest and highest round, milliseconds, and how the outputs differ."""
    spent: list[list[float]] = [[], []]
    theirs, ours = (run().float() for run in case)  # warm
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.process_time()
            case[side]()
            spent[side].append(time.process_time() - begun)
    ratios = [before / after for before, after in zip(*spent, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "theirs_ms": round(1e3 * statistics.median(spent[0]), 1),
        "ours_ms": round(1e3 * statistics.median(spent[1]), 1),
        "difference": float((theirs - ours).norm() / theirs.norm()),
        "equal_bits": torch.equal(theirs, ours),
    }


def main() -> None:
    """Measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"threads": 1, "rounds": given.rounds, "load": os.getloadavg()[0]}
    for name in given.dtypes:
        cases = {**qformer_cases(DTYPES[name]), "eye": eye_case(DTYPES[name])}
        with torch.inference_mode():
            found[name] = {case: measure(runs, given.rounds) for case, runs in cases.items()}
        for case, values in found[name].items():
            print(name, case, values, flush=True)
            assert values["difference"] <= TOLERANCE[name], f"{case} gives other values than transformers"
    if given.out:
        write_text(given.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

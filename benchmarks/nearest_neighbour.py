"""What a run on real photographs must beat: nearest neighbour on the same frozen features, and the commonest answer.

    python benchmarks/nearest_neighbour.py OUT [--features DIR]

OUT is what run_scripts/grocery.sh made: items.jsonl, questions.jsonl, train_questions.jsonl and a model. Writes
OUT/baselines.json. Nearest neighbour: the mean of each picture's feature map, cosine, over the pictures of the
knowledge base; right where the nearest is of the same entity as the question's gold item. Commonest answer: of the
training questions of the same kind (``of_its_kind``) or of all (``of_all``), given to every test question.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from ra_blip.evaluation.metrics.answers import exact_match
from ra_blip.evaluation.metrics.intervals import bootstrap
from ra_blip.models.rablip import RABlip
from ra_blip.records import Item, Question, by_id, entity, read_items, read_questions, write_text


def pooled(model: RABlip, images: Sequence[str]) -> torch.Tensor:
    """(N, W) unit vectors: the mean over each picture's frozen features."""
    parts = [model.image_features(images[start : start + 64]).mean(1) for start in range(0, len(images), 64)]
    return F.normalize(torch.cat(parts), dim=-1)


def nearest(model: RABlip, items: Sequence[Item], questions: Sequence[Question]) -> list[float]:
    """1 where the nearest known picture is of the right entity; one value a distinct picture asked with."""
    known = [item for item in items if item.image]
    gold = by_id(items)
    asked = {q.image: entity(gold[q.gold[0]]) for q in questions if q.image and q.gold}
    scores = pooled(model, list(asked)) @ pooled(model, [str(item.image) for item in known]).T
    return [float(entity(known[i]) == name) for i, name in zip(scores.argmax(1).tolist(), asked.values(), strict=True)]


def commonest(train: Sequence[Question], questions: Sequence[Question], by_kind: bool) -> list[float]:
    """1 where the commonest training answer (of the question's category, or of all) is right."""
    counts: dict[str | None, Counter[str]] = {}
    for question in train:
        counts.setdefault(question.category if by_kind else None, Counter()).update(question.answers[:1])
    asked = [q for q in questions if q.answers]
    said = [counts.get(q.category if by_kind else None, Counter()).most_common(1) for q in asked]
    return [exact_match(best[0][0], q.answers) if best else 0.0 for best, q in zip(said, asked, strict=True)]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: OUT/rank/model")
    parser.add_argument("--features", type=Path, metavar="DIR", help="folder that keeps picture features")
    given = parser.parse_args()
    items, questions = read_items(given.out / "items.jsonl"), read_questions(given.out / "questions.jsonl")
    train = read_questions(given.out / "train_questions.jsonl")
    model = RABlip.from_pretrained(given.model or given.out / "rank" / "model", given.features)
    found = {
        "nearest_neighbour": nearest(model, items, questions),
        "commonest_answer_of_its_kind": commonest(train, questions, True),
        "commonest_answer_of_all": commonest(train, questions, False),
    }
    values = {
        name: {"accuracy": sum(v) / len(v), "interval": bootstrap(v), "count": len(v)} for name, v in found.items()
    }
    write_text(given.out / "baselines.json", json.dumps(values, indent=1) + "\n")
    print(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()

"""The README's table of the demo: mean and range over several finished runs.

for seed in 1 2 3; do bash run_scripts/demo.sh runs/demo-$seed --seed $seed; done
python benchmarks/demo_table.py runs/demo-1 runs/demo-2 runs/demo-3
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS = (
    ("answers right with retrieval", "answer.with_retrieval"),
    ("the same, kept items shuffled", "answer.shuffled"),
    ("the same, half of them replaced by near-duplicates", "answer.adversarial"),
    ("with gold knowledge", "answer.gold_knowledge"),
    ("without retrieval", "answer.without_retrieval"),
    ("with random knowledge", "answer.random_knowledge"),
    ("recall@1", "retrieval.recall@1"),
    ("recall@5", "retrieval.recall@5"),
    ("ASKG names the right one of four (chance 0.25)", "askg.accuracy"),
)
CATEGORIES = (
    ("text question -> captioned picture", "captioned_picture"),
    ("text question -> text", "text_fact"),
    ("question with a picture, two hops", "question_picture"),
    ("description -> picture without words", "described_picture"),
    ("two pictures", "two_pictures"),
)


def value_at(tree: dict[str, Any], path: str) -> float:
    """The number at a dotted path."""
    for part in path.split("."):
        tree = tree[part]
    return float(tree)  # type: ignore[arg-type]


def row(title: str, values: Sequence[float]) -> str:
    """One line of the table."""
    mean = sum(values) / len(values)
    return f"| {title} | {mean:.3f} | {min(values):.3f} - {max(values):.3f} |"


def main(folders: Sequence[str]) -> None:
    """Print the table."""
    runs = [json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8")) for folder in folders]
    print(f"| unseen entities, {len(runs)} seeds | mean | range |\n|---|---|---|")
    for title, path in ROWS:
        print(row(title, [value_at(run, path) for run in runs]))
    for title, name in CATEGORIES:
        found = [value_at(run["by_category"][name], "answer.with_retrieval") for run in runs]
        print(row(f"answers right: {title}", found))


if __name__ == "__main__":
    main(sys.argv[1:])

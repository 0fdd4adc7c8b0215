"""The recipes for real photographs, end to end, on a made-up shop with a vision model of random weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ra_blip.__main__ import main
from ra_blip.config import load_config
from ra_blip.data.readers.__main__ import main as read
from ra_blip.records import read_questions, read_traces

pytest.importorskip("faiss")
ROOT = Path(__file__).resolve().parents[1]
PRODUCTS = ["Pink Lady", "Lime", "Kiwi", "Good Milk", "Oat Drink", "Sour Milk", "Leek", "Red Beet"]
SMALL = [
    "model.vision.image_size=32",
    "model.qformer={width: 16, layers: 1, heads: 2, ffn: 24, queries: 2}",
    "model.retriever.dimension=16",
    "model.generator={prompt_length: 240, config: {d_model: 16, d_kv: 8, d_ff: 24, num_layers: 1, num_heads: 2}}",
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Eight products of the public layout, four photographs each; every one has an origin and a weight."""
    folder, draw = tmp_path / "shop", np.random.default_rng(0)
    groups = ["Fruit"] * 3 + ["Packages"] * 3 + ["Vegetables"] * 2
    entries = []
    for number, (name, group) in enumerate(zip(PRODUCTS, groups, strict=True)):
        facts = {"country_of_origin": ["Peru", "Chile"][number % 2], "approx_weight": f"ca {100 + 50 * number}g"}
        entries.append({"id": number, "name": name, "coarse": group, "group": group, "facts": facts})
    for split, count in (("train", 3), ("val", 1)):
        lines = []
        for entry in entries:
            colour = np.random.default_rng(entry["id"]).integers(40, 200, 3)
            for photo in range(count):
                path = f"{split}/{entry['group']}/{entry['id']}_{photo}.jpg"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                noisy = colour + draw.integers(0, 40, (40, 40, 3))
                Image.fromarray(noisy.astype(np.uint8)).save(folder / path)
                lines.append(f"{path}, {entry['id']}, 0")
        (folder / f"{split}.txt").write_text("\n".join(lines), encoding="utf-8")
    columns = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)"
    rows = [f"{entry['name']},{entry['id']},x,0" for entry in entries]
    (folder / "classes.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


@pytest.fixture
def eye(tmp_path: Path) -> Path:
    """A folder with a MobileNetV2 of random weights, as narrow as it gets."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.1, image_size=32, finegrained_output=False)
    MobileNetV2Model(config).save_pretrained(tmp_path / "eye")
    return tmp_path / "eye"


def test_grocery_from_photographs_to_a_report(shop: Path, eye: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert read(["grocery", str(shop), str(out)]) == 0
    given = [
        f"data.items={out}/items.jsonl",
        f"data.questions={out}/train_questions.jsonl",
        f"data.features={out}/features",
    ]
    before = [f"model.vision.name={eye}", *SMALL]
    for stage in ("retrieve", "answer", "rank"):
        recipe = str(ROOT / "projects" / "grocery" / f"{stage}.yaml")
        steps = ["train.steps=3", "train.batch_size=6", f"out={out}/{stage}", "checkpoint.every=0", "data.views=2"]
        assert main(["train", recipe, *before, *given, *steps]) == 0
        before = [f"init={out}/{stage}/model"]
    shared = ["--model", f"{out}/rank/model", "--features", f"{out}/features"]
    eye.rename(tmp_path / "gone")  # the model folder holds the tower's weights
    assert main(["index", f"{out}/items.jsonl", *shared, "--out", f"{out}/index"]) == 0
    questions = [f"{out}/questions.jsonl", "--index", f"{out}/index", "--out", str(out), *shared]
    assert main(["evaluate", *questions, "--set", "vote=20", "k=10", "keep=2", "--metric", "search_entity@5"]) == 0
    assert main(["report", f"{out}/traces.jsonl", "--out", f"{out}/report.html"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["counts"]["extra"]["search_entity@5"] > 8 and set(metrics["by_category"]) >= {
        "picture_product",
        "text_origin",
    }
    traces = read_traces(out / "traces.jsonl")
    pictured = [trace for trace in traces if trace.question.image]
    assert pictured and all(trace.stage("hop") and len(trace.kept) == 2 for trace in pictured)
    assert list((out / "features").rglob("*.npy")) and (out / "report.html").stat().st_size > 1000
    baseline = [
        sys.executable,
        str(ROOT / "benchmarks" / "nearest_neighbour.py"),
        str(out),
        "--features",
        f"{out}/features",
    ]
    subprocess.run(baseline, check=True, capture_output=True, cwd=ROOT)
    found = json.loads((out / "baselines.json").read_text())
    assert found["nearest_neighbour"]["count"] == 8 and 0 <= found["nearest_neighbour"]["accuracy"] <= 1
    usual = [q.answers for q in read_questions(out / "questions.jsonl") if q.category == "picture_origin"]
    assert usual.count(("Peru",)) == usual.count(("Chile",)) == 4
    assert 0 < found["commonest_answer_of_all"]["accuracy"] < 0.5
    assert found["commonest_answer_of_all"]["count"] == metrics["counts"]["answer"]["with_retrieval"]


def test_reading_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(["grocery", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert read(["groceries", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no reader named 'groceries'" in capsys.readouterr().err


def test_the_recipes_of_the_paper_build_at_real_size_and_their_headers_are_the_dry_runs() -> None:
    from ra_blip.training.dry_run import GIB, dry_run, shapes_of

    models: dict[tuple[str | None, str], Any] = {}
    found = sorted((ROOT / "projects" / "ra_blip").glob("*.yaml"))
    assert [path.stem for path in found] == [
        *("answer_mmqa", "answer_okvqa", "answer_webqa", "finetune_coco", "pretrain_fusion", "pretrain_stage1"),
        *("rank_webqa", "retrieve_mmqa", "retrieve_webqa"),
    ]
    for path in found:
        run, header = load_config(path), path.read_text(encoding="utf-8")
        stated = re.search(r"(\d+) GPUs, (\S+) GiB each, (\S+) h \(", header)
        assert stated and "# Expected" in header and f"-m ra_blip train projects/ra_blip/{path.name}" in header
        assert f"--nproc-per-node {stated[1]} " in header
        key = (run.init, run.model.precision.vision)
        if key not in models:
            models[key] = shapes_of(run)
        plan = dry_run(run, int(stated[1]), models[key], look=False)
        assert f"{sum(plan.memory.values()) / GIB:.0f}" == stated[2], path.name
        assert f"{plan.hours:.2g}" == stated[3], path.name
        trained = plan.trained - (303_179_776 if path.stem == "finetune_coco" else 0)  # all of CLIP's ViT-L/14
        assert 4e6 < trained < 2.2e8 < plan.parameters  # else never the eye, and never the language model

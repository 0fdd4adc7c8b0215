"""Runs with damaged pictures and with threads: the same losses, one list, a limit, and no thread left behind."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ra_blip.config import CheckpointConfig, EvaluationConfig, ParamRule
from ra_blip.errors import ImageError
from ra_blip.records import Example
from ra_blip.training import checkpoint
from ra_blip.training.damaged import Damaged
from ra_blip.training.engine import fit
from ra_blip.training.faults import TrainingDiverged
from ra_blip.training.optim import apply_rules
from ra_blip.training.strategy import DataParallel, Strategy
from tests.training.line import RULES, Line, Numbers, log_of, run_of, start, train_line, weights
from tests.training.samples import captions, examples
from tests.training.test_stages import TRAINED, staged


def listed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "damaged.jsonl").read_text().splitlines()]


def loaders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def broken(*damaged: int, seed: int = 0) -> Line:
    """A stage that cannot open the pictures of some samples."""
    made = Line(seed=seed)
    made.damaged = damaged
    return made


# ---------------------------------------------------------------- the list


def test_each_damaged_sample_is_listed_once_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged, found = Damaged(tmp_path, 0.001, 8), [("b", "2.jpg: cut"), ("a", "1.jpg: cut")]
    assert damaged.numbers == {}
    damaged.note(3, found)
    assert not found and damaged.numbers == {"damaged": 2}
    damaged.note(5, [("a", "1.jpg: cut"), ("a", "3.jpg: gone")])
    rows = [(3, "a", "1.jpg: cut"), (3, "b", "2.jpg: cut"), (5, "a", "3.jpg: gone")]
    assert [tuple(row.values()) for row in listed(tmp_path)] == rows
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and said[0] == "ra-blip: step 3: sample 'a' is replaced: 1.jpg: cut"
    assert damaged.quarantine.seen == 5 * 8 + 3


def test_a_resumed_run_takes_up_the_list_as_far_as_it_got(tmp_path: Path) -> None:
    first = Damaged(tmp_path, 0.001, 8)
    for step in range(1, 5):
        first.note(step, [(str(step), "cut")])
    with first.path.open("a") as file:
        file.write('{"step": 2, "i')
    again = Damaged(tmp_path, 0.001, 8)
    again.recall(2)
    assert again.numbers == {"damaged": 2} and again.quarantine.seen == 18
    again.note(3, [("2", "cut"), ("3", "cut")])
    assert [row["id"] for row in listed(tmp_path)] == ["1", "2", "3"]


def test_the_limit_is_a_share_of_what_was_trained_on(tmp_path: Path) -> None:
    damaged = Damaged(tmp_path, 0.01, 400)
    for step in range(1, 11):
        damaged.note(step, [(f"{step}.{i}", "cut") for i in range(4)])
    with pytest.raises(
        ImageError, match=r"more than 1\.00% .*the last: lost; .*damaged\.jsonl lists them, data\.damaged"
    ):
        damaged.note(11, [(str(i), "lost") for i in range(20)])
    assert len(listed(tmp_path)) == 45, "44 of 4,400 were let pass, and a few that count themselves"
    half = Damaged(tmp_path / "half", 0.5, 400)
    half.path.parent.mkdir()
    half.note(1, [(str(i), "cut") for i in range(150)])
    assert half.numbers == {"damaged": 150}, "of one step: they were not drawn in a row"


# ---------------------------------------------------------------- runs


def test_threads_change_no_loss_and_none_is_left(tmp_path: Path) -> None:
    plain, threaded = train_line(tmp_path / "a", 6), train_line(tmp_path / "b", 6, workers=3)
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(threaded), strict=True))
    assert not loaders()


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrainingDiverged])
def test_no_thread_is_left_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    class Stopped(Line):
        def collate(self, samples: Sequence[Any], rng: np.random.Generator, step: int) -> dict[str, Any]:
            assert loaders()
            if step == 2 and error is KeyboardInterrupt:
                raise KeyboardInterrupt
            return super().collate(samples, rng, step)

    with pytest.raises(error):
        train_line(tmp_path, 6, Stopped([2]), workers=3)
    assert not loaders()


def test_a_killed_run_with_damaged_pictures_goes_on_bit_for_bit(tmp_path: Path) -> None:
    plain = train_line(tmp_path / "plain", 6, broken(3, 7))
    straight = train_line(tmp_path / "a", 6, broken(3, 7), workers=2)
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "a") and listed(tmp_path / "plain") == listed(tmp_path / "a")
    assert log_of(tmp_path / "a")[-1]["damaged"] == len(listed(tmp_path / "a")) >= 4
    for step in range(1, 6, 2):
        out = tmp_path / str(step)
        train_line(out, 6, broken(3, 7), workers=2)
        for path in checkpoint.complete(out / "checkpoints")[step:]:
            (path / "state.json").unlink()
        resumed = train_line(out, 6, broken(3, 7, seed=9), workers=3)
        assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
        assert log_of(tmp_path / "a") == log_of(out) and listed(tmp_path / "a") == listed(out)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(straight), strict=True))


def test_a_run_of_which_half_is_damaged_stops_unless_that_is_allowed(tmp_path: Path) -> None:
    for share in (0.001, 0.9, 0.0):
        run, stage = run_of(tmp_path / str(share), 12), broken(0, 2, 4, 6, 8)
        run.data.damaged = share
        Path(run.out).mkdir()
        given = (stage, Numbers(10), apply_rules(stage.model, RULES), run, Path(run.out), Strategy())
        if share == 0.9:
            fit(*given)
            assert len(stage.steps) == 12
            continue
        with pytest.raises(ImageError, match=r"^11 of \d+ pictures" if share else r"^\d\.jpg: damaged$"):
            fit(*given)
    assert len(listed(tmp_path / "0.001")) == 11 and not (tmp_path / "0.0" / "damaged.jsonl").exists()


def test_held_out_samples_are_replaced_too_and_counted_once(tmp_path: Path) -> None:
    stage, run = broken(2), run_of(tmp_path, 4)
    run.evaluation = EvaluationConfig(every=2)
    fit(stage, Numbers(2), apply_rules(stage.model, RULES), run, tmp_path, Strategy(), Numbers(9))
    (row,) = listed(tmp_path)
    assert row["step"] == 2 and row["message"] == "2.jpg: damaged"
    assert [line.get("damaged") for line in log_of(tmp_path)] == [None, 1, 1, 1]


# ---------------------------------------------------------------- pictures


class Listed:
    """Samples in a list."""

    def __init__(self, samples: Sequence[Example]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        return self.samples[index]


def retrieve(samples: Sequence[Example], out: Path, strategy: Strategy, workers: int) -> None:
    """Four steps of the retriever, of whose samples one has a damaged picture."""
    stage = staged("retrieve", conditioned=0.0)
    stage.model.processor.workers = workers
    run = run_of(out, 4, workers=workers, batch_size=3)
    run.checkpoint = CheckpointConfig(0, 1)
    table = apply_rules(stage.model, [*(ParamRule(match, lr=1e-3) for match in TRAINED["retrieve"]), ParamRule(".*")])
    fit(stage, Listed(samples), table, run, out, strategy)


def one_of_two(out: str, rank: int, world: int, port: int, samples: Sequence[Example]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES="")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    strategy = DataParallel(60.0)
    retrieve(samples, Path(out), strategy, workers=2)
    strategy.close()
    os._exit(0)


def test_two_ranks_replace_what_one_does(tmp_path: Path) -> None:
    samples = examples(tmp_path / "pictures")
    asked = samples[2].question
    Path(str(asked.image)).write_bytes(b"no picture")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    retrieve(samples, tmp_path / "one", Strategy(), workers=0)
    ranks = start(one_of_two, 2, str(tmp_path / "two"), samples)
    for rank in ranks:
        rank.join(100)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, two = (log_of(tmp_path / name) for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=3e-5)
    assert [line["damaged"] for line in one] == [line["damaged"] for line in two] == [1] * 4
    (row,) = listed(tmp_path / "one")
    assert listed(tmp_path / "two") == [row] and row["id"] == "pictured" and str(asked.image) in row["message"]


def test_pictures_are_opened_ahead_unless_their_features_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, frozen = staged("pretrain"), staged("answer")
    sample, items = examples(tmp_path)[1], captions(tmp_path)
    cases: list[tuple[Any, list[Any], list[Any]]] = [(live, items[:2], items[:2]), (frozen, [sample], items)]
    for stage, samples, pictured in cases:
        opened: list[str] = []
        real = stage.model.processor.open
        monkeypatch.setattr(
            stage.model.processor, "open", lambda image, o=opened, r=real: (o.append(image), r(image))[1]
        )
        open_pictures = stage.opener()
        for one in samples:
            open_pictures(one)
        used = [item.image for item in pictured]
        assert opened == used, "of the question, the golds and the negatives"
        decoded = stage.model.processor._pixels.cache_info().misses
        stage.features(used)
        assert stage.model.processor._pixels.cache_info().misses == decoded, "the forward pass finds them"
        opened.clear()
        open_pictures(samples[0])
        assert opened == ([items[0].image] if stage is live else [])

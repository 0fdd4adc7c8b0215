"""Elastic restart: where a process dies the launcher starts all again, and they go on. Also the launcher's worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ra_blip.training import checkpoint
from tests.training.line import final, log_of, run_processes, start, work

STEPS = 12
KILL: dict[str, object] = {"do": "kill", "step": 6, "rank": 1}


def check(out: Path, folder: Path) -> None:
    """The run of ``out`` had the losses, and ended with the bits, of one that nobody disturbed."""
    assert run_processes(folder / "straight", 2, STEPS) == [0, 0]
    assert log_of(out) == log_of(folder / "straight")
    assert all(torch.equal(a, b) for a, b in zip(final(out), final(folder / "straight"), strict=True))


def restarted(out: str, rank: int, world: int, port: int, launcher: int, plan: dict[str, object]) -> None:
    """A process that meets the others at the launcher's port."""
    work(out, rank, world, launcher, STEPS, plan)


def test_processes_started_again_do_not_meet_those_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps its own, too
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    out = tmp_path / "run"
    out.mkdir()
    attempts: tuple[tuple[str, dict[str, object], list[int], str], ...] = (
        ("0", KILL, [2, -9], "step-0000006"),
        ("1", {}, [0, 0], "step-0000012"),
    )
    keys = []
    for attempt, plan, codes, newest in attempts:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        made = start(restarted, 2, str(out), store.port, plan)
        for process in made:
            process.join(60)
        assert [process.exitcode for process in made] == codes
        assert checkpoint.newest(out / "checkpoints")[0] == out / "checkpoints" / newest
        keys.append(store.num_keys())
    assert keys[0] < keys[1]  # addresses of their own: whether those of the dead are read is a matter of luck
    monkeypatch.undo()
    check(out, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    not os.environ.get("RA_BLIP_ALL_CRASHES"), reason="takes five starts of Python: RA_BLIP_ALL_CRASHES=1"
)
def test_torchrun_starts_all_again(tmp_path: Path) -> None:
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    root, out = Path(__file__).resolve().parents[2], tmp_path / "run"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *launch, __file__, str(out)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (out / "attempts").read_text().split() == ["0", "1"]
    check(out, tmp_path)


if __name__ == "__main__":  # as torchrun starts it
    given = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")}
    rank, world, port, attempt = map(int, given.values())
    if rank == 0:
        with (Path(sys.argv[1]) / "attempts").open("a") as file:
            file.write(f"{attempt}\n")
    work(sys.argv[1], rank, world, port, STEPS, {} if attempt else KILL)

"""The launchers, run over stand-ins for what they start: which commands, in what environment, and with what end."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "run_scripts"
SAY = 'echo "$(basename "$0") $*" >>"$LOG"\n'
STAND_INS = {
    "torchrun": SAY,
    # FAIL=VERB:CODE says which verb ends badly, and how; of two processes it is the second.
    "ra-blip": 'as="${RANK:+ as $RANK/$WORLD_SIZE, here $LOCAL_RANK, at $MASTER_ADDR:$MASTER_PORT}"\n'
    'echo "ra-blip $*$as" >>"$LOG"\n'
    'if [ "$1" = "${FAIL%:*}" ] && [ "${RANK:-1}" = 1 ]; then exit "${FAIL#*:}"; fi',
    "scontrol": SAY + 'if [ "$1" = show ]; then echo node7; echo node8; fi',
    # Two tasks one after the other; like the real one it ends with the highest of their codes.
    "srun": 'echo "srun $1" >>"$LOG"; shift; worst=0\nfor task in 0 1; do\n'
    'SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" || code=$?\n'
    '[ "${code:-0}" -lt "$worst" ] || worst=${code:-0}\ndone; exit "$worst"',
}


def run(script: str, arguments: list[str], folder: Path, **environment: str) -> tuple[int, list[str]]:
    """A script from a folder of its own, in which installing does nothing -> (exit code, what it called)."""
    place, commands = folder / "run_scripts", folder / "bin"
    place.mkdir(exist_ok=True)
    commands.mkdir(exist_ok=True)
    shutil.copy(SCRIPTS / script, place)
    (place / "environment.sh").write_text('set -euo pipefail\necho "extras $1" >>"$LOG"\n')
    for name, text in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (commands / name).chmod(0o755)
    log = folder / "log"
    log.unlink(missing_ok=True)
    given = {"PATH": f"{commands}:{os.environ['PATH']}", "LOG": str(log), "FAIL": "", **environment}
    made = subprocess.run(["bash", str(place / script), *arguments], env=given, cwd=folder, capture_output=True)
    return made.returncode, log.read_text().splitlines() if log.exists() else []


def test_train_is_one_process_or_as_many_as_asked_for(tmp_path: Path) -> None:
    asked = ["recipe.yaml", "out=runs/a b"]
    assert run("train.sh", asked, tmp_path) == (0, ["extras cpu", "ra-blip train recipe.yaml out=runs/a b"])
    assert run("train.sh", asked, tmp_path, FAIL="train:75")[0] == 75
    many = {"RA_BLIP_PROCESSES": "2", "RA_BLIP_EXTRAS": "cpu,deepspeed"}
    called = "torchrun --standalone --nproc-per-node 2 -m ra_blip train recipe.yaml out=runs/a b"
    assert run("train.sh", asked, tmp_path, **many) == (0, ["extras cpu,deepspeed", called])


@pytest.mark.parametrize("code", [0, 2, 75])
def test_slurm_starts_every_rank_and_queues_again_what_was_stopped(code: int, tmp_path: Path) -> None:
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[7-8]"}
    ended, called = run("slurm.sh", ["recipe.yaml", "out=runs/a b"], tmp_path, FAIL=f"train:{code}", **job)
    ranks = [
        f"ra-blip train recipe.yaml out=runs/a b as {rank}/2, here {rank}, at node7:{20000 + 1234}" for rank in (0, 1)
    ]
    again = ["scontrol requeue 41234"] if code == 75 else []
    assert ended == code
    assert called == ["extras cpu", "scontrol show hostnames node[7-8]", "srun --wait=60", *ranks, *again]


def test_slurm_says_how_it_is_started(tmp_path: Path) -> None:
    assert run("slurm.sh", ["recipe.yaml"], tmp_path) == (1, [])


def test_evaluate_makes_the_page_of_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    asked = ["q.jsonl", "model", "index", str(out), "--method", "none"]
    measured = f"ra-blip evaluate q.jsonl --model model --index index --out {out} --method none"
    page = f"ra-blip report {out}/traces.jsonl --out {out}/report.html"
    assert run("evaluate.sh", asked, tmp_path) == (0, ["extras cpu", measured, page])
    assert run("evaluate.sh", asked, tmp_path, FAIL="evaluate:2") == (2, ["extras cpu", measured])
    assert run("evaluate.sh", asked[:3], tmp_path) == (1, [])

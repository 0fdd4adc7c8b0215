"""Where numbers go: JSON lines always, a progress bar with losses and ETA for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ra_blip.records import write_text


class Tracker:
    """``log(numbers, step)`` behind one face.

    Args:
        path: ``log.jsonl``; lines of steps after ``start`` (from a run that was killed) are cut.
        start: first step of this session.
        steps: last step, for the bar.
        name: shown before the bar.
        quiet: no bar, as on ranks other than 0.
    """

    def __init__(self, path: Path, start: int, steps: int, name: str, quiet: bool = False) -> None:
        self.quiet = quiet
        if quiet:
            return
        if path.exists():
            write_text(path, [line for line in path.open(encoding="utf-8") if _step(line) <= start])
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(total=steps, initial=start, desc=name, dynamic_ncols=True, mininterval=1.0, file=sys.stderr)

    def log(self, numbers: dict[str, Any], step: int) -> None:
        """Append one line for ``step`` (from 1) and move the bar."""
        if self.quiet:
            return
        line = {"step": step, **{key: _short(value) for key, value in numbers.items()}}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        shown = {key: f"{value:.3g}" for key, value in numbers.items() if key.endswith("loss")}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Close file and bar."""
        if not self.quiet:
            self._file.close()
            self._bar.close()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize  # a torn last line


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value

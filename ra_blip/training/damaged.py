"""The samples that a run replaced because a picture cannot be opened: listed once each, and limited."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from ra_blip.errors import ImageError, OutputError
from ra_blip.images import Quarantine
from ra_blip.records import write_text
from ra_blip.training import gather
from ra_blip.training.samples import Damage


class Damaged:
    """One list for all ranks, ``OUT/damaged.jsonl``: ``{"step", "id", "message"}``, a line a sample and message.

    Args:
        out: the run's folder, which rank 0 writes to.
        share: most samples that may be listed, of those trained on; :class:`~ra_blip.images.Quarantine` counts.
        size: samples in a step.
    """

    def __init__(self, out: Path, share: float, size: int) -> None:
        self.path, self.size = out / "damaged.jsonl", size
        self.quarantine = Quarantine(share)
        self._known: set[Damage] = set()

    @property
    def numbers(self) -> dict[str, int]:
        """How many samples are listed, to log; nothing where none is."""
        return {"damaged": self.quarantine.total} if self.quarantine.total else {}

    def recall(self, step: int) -> None:
        """Take up what an earlier session listed up to a step. Collective."""
        rows: list[dict[str, Any]] = []
        if gather.place()[0] == 0 and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):  # a torn last line
                    rows.append(json.loads(line))
            rows = [row for row in rows if row["step"] <= step]
            write_text(self.path, [_line(row) for row in rows])
        rows = gather.join([rows])[0]
        self._known = {(row["id"], row["message"]) for row in rows}
        self.quarantine.messages = [row["message"] for row in rows]
        self.quarantine.seen = step * self.size + len(rows)

    def note(self, step: int, found: list[Damage]) -> None:
        """List what a step replaced on this rank and on the others, and empty ``found``. Collective.

        Raises:
            ImageError: more than the run may replace; on all ranks.
            OutputError: the list cannot be written.
        """
        everyones = {damage for part in gather.join([found]) for damage in part}
        found.clear()
        for name, message in sorted(everyones - self._known):
            self._known.add((name, message))
            if gather.place()[0] == 0:
                print(f"ra-blip: step {step}: sample {name!r} is replaced: {message}", file=sys.stderr)
                self._write({"step": step, "id": name, "message": message})
            # Whole samples stand between them; what is damaged in a row ends the loader.
            self.quarantine.good(step * self.size + self.quarantine.total - self.quarantine.seen)
            try:
                self.quarantine.bad(message)
            except ImageError as error:
                raise ImageError(f"{error}; {self.path} lists them, data.damaged says how many may be") from None

    def _write(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"

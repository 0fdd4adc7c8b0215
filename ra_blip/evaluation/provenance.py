"""What made a set of figures: versions, revision, seed, threads, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = {"ra_blip": "ra-blip", "torch": "torch", "transformers": "transformers", "numpy": "numpy"}
FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu")


def provenance(seed: int, **more: Any) -> dict[str, Any]:
    """Versions of Python and the packages that matter (null where absent), git revision, seed, threads, platform."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(package) for name, package in PACKAGES.items()},
            "faiss": next(filter(None, map(_version, FAISS_PACKAGES)), None),
        },
        "revision": revision(),
        "seed": seed,
        "threads": _threads(),
        "platform": platform.platform(),
        **more,
    }


def revision() -> str | None:
    """Git revision of the checkout that this package runs from; None where it is installed elsewhere."""
    folder = Path(__file__).resolve().parent
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
    head = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:  # the first call tells our checkout from a repository that only happens to hold the environment
        subprocess.run(tracked, capture_output=True, check=True, timeout=10)
        return subprocess.run(head, capture_output=True, check=True, timeout=10, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads() -> int | None:
    torch = sys.modules.get("torch")  # asked only where the model brought it
    return int(torch.get_num_threads()) if torch is not None else os.cpu_count()

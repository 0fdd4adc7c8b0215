"""A folder is replaced as a whole, whenever the replacement is killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ra_blip.folders import replacing, standing


def content(place: Path) -> str:
    """What a reader finds."""
    return (standing(place) / "x").read_text()


def write(place: Path, text: str) -> None:
    with replacing(place) as fresh:
        (fresh / "x").write_text(text)


def test_the_new_folder_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "deep" / "place", text)
        assert content(tmp_path / "deep" / "place") == text
    assert os.listdir(tmp_path / "deep") == ["place"]


def test_an_error_while_filling_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "place", "one")
    with pytest.raises(ValueError, match="half"), replacing(tmp_path / "place") as fresh:
        (fresh / "x").write_text("two")
        raise ValueError("half")
    assert content(tmp_path / "place") == "one" and os.listdir(tmp_path) == ["place"]


def test_between_the_renames_the_old_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    write(place, "one")
    rename, done = os.rename, []

    def killed(*paths: Path) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(paths)
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", killed)
        write(place, "two")
    assert not place.exists() and content(place) == "one"
    assert standing(tmp_path / "other") == tmp_path / "other"
    write(place, "three")
    assert content(place) == "three" and os.listdir(tmp_path) == ["place"]

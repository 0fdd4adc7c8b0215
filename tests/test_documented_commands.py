"""What pages and the heads of recipes tell people to type is understood, down to recipes, keys, methods and models."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from ra_blip.__main__ import parser
from ra_blip.config import load_config
from ra_blip.evaluation.compare import Row, row_names
from ra_blip.generation.pipeline import PipelineConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "projects" / "README.md"]
RECIPES = sorted((ROOT / "projects").rglob("*.yaml"))
VERB = re.compile(r"^(?:ra-blip|(?:python|torchrun --nproc-per-node \d+) -m ra_blip) ")
SCRIPT = re.compile(r"(?:run_scripts|benchmarks)/\w+\.(?:sh|py)")


def joined(text: str) -> list[str]:
    """Lines, those that end in a backslash with the next."""
    return re.sub(r"\s*\\\n\s*", " ", text).splitlines()


def commands_of(path: Path) -> list[str]:
    """Command lines of our own in a page's code blocks, or in the comment that begins a recipe."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        head = "\n".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
        lines = [part.strip() for line in joined(head) for part in line.split("; ")]
    else:
        lines = joined("\n".join(re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)))
    return [line.partition(" # ")[0] for line in lines if VERB.match(line)]


COMMANDS = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}: {command[:60]}")
    for path in [*PAGES, *RECIPES]
    for command in commands_of(path)
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 25
    assert sum(1 for path in RECIPES if commands_of(path)) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = parser().parse_args(shlex.split(VERB.sub("", command)))
    if given.verb in ("train", "config") and given.recipe != "RECIPE.yaml":
        load_config(given.recipe, [override.replace("...", "PATH") for override in given.overrides])
    if given.verb == "compare":
        rows = [Row.of(name) for name in row_names(given.methods, given.ablations, given.noise)]
        assert {pair.partition("=")[0] for pair in given.models} <= {row.model for row in rows}
    if getattr(given, "set", None):
        PipelineConfig.of(given.set, given.method)


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_what_a_page_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for script in SCRIPT.findall(text):
        assert (ROOT / script).exists()
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(#[^)\s]*)?\)", text):
        page = (path.parent / target) if target else path
        assert page.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads]
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)

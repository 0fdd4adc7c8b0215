"""The house rules, read from the source: who imports whom, sizes, types, docstrings, what stands at the top level."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ra_blip"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LEAVES = {"records", "errors", "config", "config_errors", "images", "containers", "folders", "safe_http"}
LEAF_EDGES = {
    **{"folders": set(), "errors": set(), "records": {"errors"}, "config": {"errors", "records", "config_errors"}},
    **{
        "config_errors": {"errors"},
        "containers": {"errors"},
        "images": {"errors", "containers"},
        "safe_http": {"errors"},
    },
}
# Room -> the rooms that it may import, beside the leaves.
ROOM_EDGES: dict[str, set[str]] = {
    "data": set(),
    "models": set(),
    "training": {"data", "models"},
    "retrieval": set(),
    "generation": {"retrieval"},
    "evaluation": {"retrieval", "generation"},
    "report": {"evaluation.metrics"},
    "serve": {"retrieval", "generation"},
    "integrations": {"data", "models", "retrieval", "generation"},
}
# The front of the house: may import every room, and is imported by none.
FRONT = {"", "__main__", "commands", "demo"}
# What holds inside a room too: module -> packages that it must not import.
FORBIDDEN = {
    "training.engine": {"ra_blip.models", "transformers"},  # it is handed a stage
    "training.losses": {"ra_blip.models", "ra_blip.data", "ra_blip.training", "transformers"},
}
LIGHT = {"report", "evaluation.metrics", "data.check", "commands", "__main__", "", *LEAVES}  # never torch, at any depth

TOP_LEVEL = {
    *("setup.py", "README.md", "LICENSE", "ra_blip", "projects", "run_scripts", "tests"),
    *("pyproject.toml", "requirements", "docs", "benchmarks", ".ci", ".github", ".gitignore"),
}


def module_of(path: Path) -> str:
    """``retrieval.index`` for ra_blip/retrieval/index.py; a package's own file counts as the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every module that these statements import; ``from a import b`` gives ``a.b``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}: write it from ra_blip"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


TREES = {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
IMPORTS = {module: sorted(set(imports_of(ast.walk(tree)))) for module, tree in TREES.items()}  # at whatever depth


def below(name: str, package: str) -> bool:
    """Whether ``name`` is ``package`` or lies in it."""
    return name == package or name.startswith(f"{package}.")


def allowed(module: str, target: str) -> bool:
    """Whether ``module`` may import ``target``, both without the leading ``ra_blip.``."""
    room = module.partition(".")[0]
    if module in FRONT:
        return True
    if room in LEAVES:
        return target.partition(".")[0] in LEAF_EDGES[room]
    known = {room, *LEAVES, *ROOM_EDGES[room]}
    return target == "__version__" or any(below(target, name) for name in known)


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_point_one_way(module: str) -> None:
    ours = [name.removeprefix("ra_blip.") for name in IMPORTS[module] if below(name, "ra_blip")]
    assert [name for name in ours if not allowed(module, name)] == []
    banned = FORBIDDEN.get(module, set())
    assert [name for name in IMPORTS[module] if any(below(name, one) for one in banned)] == []


def test_rule_recognises_a_wrong_edge() -> None:
    assert not allowed("models.rablip", "data.atlas")
    assert not allowed("retrieval.index", "models.rablip")
    assert not allowed("records", "config.RunConfig")
    assert not allowed("report.page", "evaluation.evaluate.evaluate")
    assert not allowed("data.atlas", "commands")
    assert allowed("generation.pipeline", "retrieval.search.search")


def test_no_module_needs_itself_to_be_imported() -> None:
    known = set(IMPORTS)

    def targets(module: str) -> set[str]:
        names = [name.removeprefix("ra_blip.") for name in imports_of(TREES[module].body) if below(name, "ra_blip")]
        return {one for name in names for one in (name, name.rpartition(".")[0]) if one in known and one} - {module}

    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"imports in a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for one in targets(module):
                visit(one, (*path, module))
            done.add(module)

    for module in sorted(known - {""}):
        visit(module, ())


def test_every_folder_of_the_package_is_a_known_room() -> None:
    rooms = {module.partition(".")[0] for module in IMPORTS}
    assert rooms <= set(ROOM_EDGES) | LEAVES | FRONT


def test_report_metrics_and_command_line_do_without_torch() -> None:
    for module, names in IMPORTS.items():
        if any(below(module, one) if one else module == "" for one in LIGHT):
            heavy = [name for name in names if name.partition(".")[0] in {"torch", "transformers", "faiss"}]
            assert heavy == [], f"{module} imports {heavy}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_size_types_and_docstrings(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = TREES[module_of(path)]
    assert len(source.splitlines()) <= 400
    problems = [] if ast.get_docstring(tree) else ["the module has no docstring"]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            problems += function_problems(node)
    problems += [f"{name} has no docstring" for name in undocumented(tree)]
    assert problems == []


def function_problems(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Too long, or a parameter or the result without a type."""
    problems = []
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if length > 80:
        problems.append(f"{node.name} has {length} lines")
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    untyped = [one.arg for one in arguments if one and one.annotation is None and one.arg not in ("self", "cls")]
    if untyped or node.returns is None:
        problems.append(f"{node.name} lacks types: {', '.join([*untyped, *([] if node.returns else ['result'])])}")
    return problems


def undocumented(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public classes, functions and methods without a docstring; overloads speak through their implementation."""
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or child.name.startswith("_"):
            continue
        overload = any(isinstance(one, ast.Name) and one.id == "overload" for one in child.decorator_list)
        if not ast.get_docstring(child) and not overload:
            yield f"{prefix}{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{prefix}{child.name}.")


def test_no_catch_all_modules_and_no_unfinished_marks() -> None:
    assert [path.name for path in SOURCES if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
    assert [module_of(path) for path in SOURCES if marks.search(path.read_text(encoding="utf-8"))] == []


def test_import_is_light() -> None:
    code = "import sys, ra_blip; print([m for m in ('torch', 'transformers', 'faiss', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    import ra_blip

    assert set(ra_blip.__all__) <= set(dir(ra_blip))
    assert {name: callable(getattr(ra_blip, name)) for name in ra_blip._HOMES} == dict.fromkeys(ra_blip._HOMES, True)
    with pytest.raises(AttributeError, match="no attribute 'RABlib'"):
        _ = ra_blip.RABlib


def tracked() -> list[str]:
    """Files under version control; skips where there is none, as in an unpacked release."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [name for name in done.stdout.decode("utf-8").split("\0") if name and (ROOT / name).is_file()]
    if not files:
        pytest.skip("nothing is committed yet")
    return files


def test_top_level_holds_only_what_belongs_there() -> None:
    assert {name.partition("/")[0] for name in tracked()} - TOP_LEVEL == set()


def test_no_machine_paths_and_no_registry_hosts() -> None:
    # written in pieces, so that this file does not hold what it looks for
    folders = "|".join(["wo" + "rk", "fa" + "rm", "ro" + "ot", "home" + "/[a-z]", "Us" + "ers", "tmp" + "/bash"])
    hosts = "|".join([r"pypi" + r"\.org", r"files\.python" + "hosted", r"download\.py" + "torch", "file:" + "///opt"])
    pattern = re.compile(rf"(?<![A-Za-z0-9_.])/({folders})/|{hosts}")
    found = []
    for name in tracked():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name}, line {n}" for n, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    assert found == []


def test_launchers_are_short() -> None:
    for script in (ROOT / "run_scripts").glob("*.sh"):
        assert len(script.read_text(encoding="utf-8").splitlines()) < 30, script.name

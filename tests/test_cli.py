"""The verbs end to end with a small stand-in for the model; training and demo have tests of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ra_blip import commands
from ra_blip.__main__ import VERBS, Parser, main
from ra_blip.errors import CheckpointError, OutputError
from ra_blip.records import Item, Question, read_questions, read_traces, write_jsonl
from ra_blip.retrieval.index import KnowledgeIndex
from tests.fakes import FakeModel


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A knowledge base and questions in the current folder; models are called "model" and "other"."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    names = ["velora", "kimbo", "tarsa", "oluni", "pegra", "sidom"]
    items = [Item(name, text=f"the {name} tower was designed by {name[::-1]}") for name in names]
    items.append(Item("picture", text="a view of the marun hall in red", image=str(tmp_path / "red.png")))
    write_jsonl(tmp_path / "items.jsonl", items)
    questions = [
        Question(f"q-{n}", f"Who designed the {n} tower?", answers=(n[::-1],), gold=(n,), category="fact")
        for n in names
    ]
    write_jsonl(tmp_path / "questions.jsonl", questions)
    models = {"model": FakeModel(), "other": FakeModel(seed=1)}

    def load(folder: str, features: str | None = None) -> FakeModel:
        if folder not in models:
            raise CheckpointError(f"{folder}: no such model")
        return models[folder]

    monkeypatch.setattr(commands, "_model", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def index(base: Path) -> Path:
    """The index of all items."""
    assert main(["index", "items.jsonl", "--model", "model", "--out", "index"]) == 0
    return base / "index"


def run(command: str) -> int:
    """Run a verb whose arguments hold no spaces."""
    return main(command.split())


def fails(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Run a verb that must fail with one line on stderr and nothing on stdout; gives that line."""
    capsys.readouterr()
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ra-blip: ") and err.count("\n") == 1
    return err


def answer(capsys: pytest.CaptureFixture[str], question: str, *more: str) -> dict[str, object]:
    """What ``ask --json`` says."""
    capsys.readouterr()
    assert main(["ask", question, "--model", "model", "--index", "index", "--json", *more]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def test_ask_prints_the_answer_and_what_it_rests_on(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["ask", "Who designed the velora tower?", "--model", "model", "--index", "index"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "arolev"
    assert lines[1].startswith("  rests on velora (")
    assert lines[2] == "    the velora tower was designed by arolev"


def test_ask_prints_the_path_of_a_picture(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["ask", "a view of the marun hall", "--model", "model", "--index", "index"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "red"
    path = lines[3].strip()
    assert os.path.samefile(path, "red.png")


def test_ask_json(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = answer(capsys, "Who designed the kimbo tower?")
    assert set(value) == {"answer", "judged", "hits", "seconds"}
    assert value["answer"] == "obmik"
    assert value["judged"] == ["kimbo"]
    hits = value["hits"]
    assert isinstance(hits, list) and set(hits[0]) == {"id", "score", "stage"}
    assert {hit["stage"] for hit in hits} == {"search", "rank"}
    assert isinstance(value["seconds"], dict) and set(value["seconds"]) == {"search", "rank", "judge", "generate"}


def test_ask_without_knowledge_needs_no_index(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "Who?", "--model", "model", "--method", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == []
    assert "--index is missing" in fails(capsys, "ask", "Who?", "--model", "model")


def test_control_characters_of_an_item_do_not_reach_the_terminal(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl("items.jsonl", [Item("i\x1b[2J", text="evil \x1b[31m tower\nred")])
    assert main(["index", "items.jsonl", "--model", "model", "--out", "index"]) == 0
    assert main(["ask", "evil tower", "--model", "model", "--index", "index"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_knowledge_is_edited_without_training(index: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "Who designed the newly tower?"
    assert answer(capsys, question)["answer"] != "nobody"
    write_jsonl("new.jsonl", [Item("newly", text="the newly tower was designed by nobody")])
    assert main(["index", "new.jsonl", "--model", "model", "--out", "index", "--add"]) == 0
    assert answer(capsys, question)["answer"] == "nobody"

    write_jsonl("new.jsonl", [Item("newly", text="the newly tower was designed by somebody")])
    assert "newly" in fails(capsys, "index", "new.jsonl", "--model", "model", "--out", "index", "--add")
    assert main(["index", "new.jsonl", "--model", "model", "--out", "index", "--add", "--remove", "newly"]) == 0
    assert answer(capsys, question)["answer"] == "somebody"

    assert main(["index", "--out", "index", "--remove", "newly", "kimbo"]) == 0
    assert capsys.readouterr().out.endswith("6 items in index\n")
    assert "newly" not in str(answer(capsys, question)["hits"])
    assert "nemo" in fails(capsys, "index", "--out", "index", "--remove", "nemo")


def test_a_large_index_goes_on_from_the_vectors_it_has(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "LARGE", 6)
    build = ("index", "items.jsonl", "--model", "model", "--out", "large/index")
    with monkeypatch.context() as patched:
        patched.setattr(KnowledgeIndex, "save", _fail)
        assert "disk full" in fails(capsys, *build)
    kept = base / "large" / ".index.vectors"
    assert (kept / "vectors-00000.npy").exists()
    with monkeypatch.context() as patched:
        patched.setattr(FakeModel, "encode_items", _fail)
        assert main(build) == 0
    assert capsys.readouterr().out == "7 items in large/index\n" and not kept.exists()
    assert main(["index", "items.jsonl", "--model", "model", "--out", "small"]) == 0
    files = [base / name / "index.faiss" for name in ("large/index", "small")]
    assert files[0].read_bytes() == files[1].read_bytes()


def _fail(*arguments: object) -> None:
    raise OutputError("disk full")


def test_remove_says_that_items_are_not_read(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "items.jsonl", "--model", "model", "--out", "index", "--remove", "velora"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("6 items in index\n")
    assert err == "ra-blip: --remove without --add: items.jsonl is not read\n"


def test_search_writes_hits(index: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search questions.jsonl --model model --index index --k 3 --out hits.jsonl") == 0
    found = [json.loads(line) for line in Path("hits.jsonl").read_text().splitlines()]
    assert [one["id"] for one in found] == [question.id for question in read_questions("questions.jsonl")]
    assert [one["hits"][0]["id"] for one in found] == ["velora", "kimbo", "tarsa", "oluni", "pegra", "sidom"]
    assert {len(one["hits"]) for one in found} == {3}
    error = fails(
        capsys, "search", "questions.jsonl", "--model", "model", "--index", "index", "--k", "99", "--out", "hits2.jsonl"
    )
    assert "99" in error and "7" in error
    assert not Path("hits2.jsonl").exists()


def test_evaluate_then_report(index: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate questions.jsonl --model model --index index --out run --metric token_f1 ndcg@10"
    assert run(command) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["answer"]["with_retrieval"] == 1.0
    assert metrics["answer"]["without_retrieval"] == 0.0
    assert metrics["retrieval"]["recall@1"] == 1.0
    assert {"token_f1", "ndcg@10"} <= set(metrics["extra"])
    assert len(read_traces("run/traces.jsonl")) == 6
    assert run("report run/traces.jsonl --out page/report.html") == 0
    assert "<html" in Path("page/report.html").read_text()
    assert "no-such" in fails(capsys, *f"{command} no-such".split())


def test_evaluate_without_retrieval(base: Path) -> None:
    assert run("evaluate questions.jsonl --model model --out run --no-retrieval") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["answer"] == {"without_retrieval": 0.0}


def test_config_prints_the_resolved_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("train: {steps: 7}\n")
    assert main(["config", str(tmp_path / "recipe.yaml"), "seed=5"]) == 0
    printed = capsys.readouterr().out
    assert "  steps: 7\n" in printed and "seed: 5\n" in printed
    (tmp_path / "printed.yaml").write_text(printed)
    assert main(["config", str(tmp_path / "printed.yaml")]) == 0
    assert capsys.readouterr().out == printed
    assert "'steps'" in fails(capsys, "config", str(tmp_path / "recipe.yaml"), "train.step=1")


ASK = ("ask", "Who?", "--model", "model", "--index", "index")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("ask", "", *ASK[2:]), "empty"),
        (("ask", "x" * 100_000, *ASK[2:]), "100,000 characters"),
        ((*ASK, "--image", "none.png"), "none.png"),
        (("ask", "Who?", "--model", "none", "--index", "index"), "none: no such model"),
        (("ask", "Who?", "--model", "model", "--index", "none"), "none"),
        (("ask", "Who?", "--model", "other", "--index", "index"), "weights"),
        (("index", "none.jsonl", "--model", "model", "--out", "new"), "none.jsonl: no such file"),
        (("index", "broken.jsonl", "--model", "model", "--out", "new"), "broken.jsonl, line 2: not JSON"),
        (("index", "empty.jsonl", "--model", "model", "--out", "new"), "empty.jsonl: holds no item"),
        (("index", "--model", "model", "--out", "new"), "give ITEMS.jsonl"),
        (("index", "items.jsonl", "--out", "new"), "--model"),
        (("index", "items.jsonl", "--model", "model", "--out", "new", "--add"), "new"),
        (("report", "none.jsonl", "--out", "new.html"), "none.jsonl: no such file"),
        (("report", "items.jsonl", "--out", "new.html"), "items.jsonl, line 1: not a trace"),
        (("check", "none"), "none: no such file or folder"),
        (("train", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    index: Path, base: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    Path("broken.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": \n')
    Path("empty.jsonl").write_text("")
    before = sorted(base.rglob("*"))
    assert message in fails(capsys, *argv)
    assert sorted(base.rglob("*")) == before


@pytest.mark.parametrize(
    "argv",
    [
        "demo --out OUT",
        "train recipe.yaml out=OUT",
        "index items.jsonl --model model --out OUT",
        "search questions.jsonl --model model --index index --out OUT",
        "evaluate questions.jsonl --model model --index index --out OUT",
        "report traces.jsonl --out OUT",
    ],
)
def test_an_unwritable_out_is_found_before_any_work(
    index: Path, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: str
) -> None:
    def work(folder: str) -> FakeModel:
        raise AssertionError("work has begun")

    monkeypatch.setattr(commands, "_model", work)
    Path("file").write_text("x")
    Path("recipe.yaml").write_text("{}")
    write_jsonl("traces.jsonl", [{"question": {"id": "q", "text": "Who?"}}])
    before = sorted(base.rglob("*"))
    assert "file" in fails(capsys, *argv.replace("OUT", "file/below").split())
    assert "file" in fails(capsys, *argv.replace("OUT", "file/below/two").split())
    assert sorted(base.rglob("*")) == before


def test_an_out_of_the_wrong_kind(index: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("x")
    assert "is a file" in fails(capsys, "demo", "--out", "file")
    assert "is a folder" in fails(
        capsys, "search", "questions.jsonl", "--model", "model", "--index", "index", "--out", "index"
    )
    (base / "mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    assert "notes.txt" in fails(capsys, "index", "items.jsonl", "--model", "model", "--out", "mine")
    assert Path("mine/notes.txt").read_text() == "keep me"


def test_check_counts_and_finds_every_problem(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "."]) == 0
    printed = capsys.readouterr().out
    assert "6  items.jsonl: text" in printed and "1  items.jsonl: image+text" in printed
    assert "6  questions.jsonl: fact" in printed and printed.endswith("0 problems\n")
    with open("items.jsonl", "a") as out:
        out.write('{"id": "x", "image": "none.png"}\n{oops\n')
    assert main(["check", "items.jsonl"]) == 1
    printed = capsys.readouterr().out
    assert "items.jsonl, line 8: none.png: no such picture" in printed
    assert "items.jsonl, line 9: not JSON" in printed and printed.endswith("2 problems\n")


def raising(error: BaseException) -> object:
    def command(arguments: object) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "ra-blip: interrupted\n"),
        (OSError(28, "No space left on device", "x.npy"), 2, "ra-blip: x.npy: No space left on device\n"),
        (PermissionError(13, "Permission denied"), 2, "ra-blip: Permission denied\n"),
        (ValueError("a\nb"), 1, "ra-blip: unexpected ValueError: a b (run again with --debug for the traceback)\n"),
    ],
)
def test_other_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    monkeypatch.setitem(VERBS, "check", (VERBS["check"][0], raising(error)))
    assert main(["check", "x"]) == code
    assert capsys.readouterr().err == line
    for argv in (["--debug", "check", "x"], ["check", "x", "--debug"]):
        with pytest.raises(type(error)):
            main(argv)


def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in [
        (["ask", "Who?"], "ra-blip ask: the following arguments are required: --model (see ra-blip ask --help)\n"),
        (["search", "q", "--k", "0"], "ra-blip search: argument --k: must be at least 1 (see ra-blip search --help)\n"),
        (["search", "q", "--k", "x"], "ra-blip search: argument --k: invalid whole number value: 'x' (see"),
        ([], "ra-blip: the following arguments are required: VERB (see ra-blip --help)\n"),
    ]:
        with pytest.raises(SystemExit) as left:
            main(argv)
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: ra-blip {verb}") and VERBS[verb][1].__doc__


def test_the_page_on_the_command_line_names_every_verb_and_option() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs/cli.md").read_text(encoding="utf-8")
    for verb, (options, _) in VERBS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{verb} "))
        one = Parser(prog=verb, add_help=False)
        options(one)
        names = [action.option_strings[0] for action in one._actions if action.option_strings]
        assert [name for name in names if name not in row] == []


def process(*argv: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "ra_blip", *argv])]
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        assert process("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.4  # the least of five: other processes share the machine
    code = "import sys; from ra_blip.__main__ import parser; parser(); print(*sys.modules)"
    loaded = set(process(code=code).stdout.split())
    assert "ra_blip.commands" in loaded
    assert loaded & {"torch", "transformers", "faiss", "numpy", "PIL", "omegaconf", "yaml"} == set()


def test_the_process_leaves_with_the_exit_code(tmp_path: Path) -> None:
    done = process("config", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ra-blip: {tmp_path / 'none.yaml'}: no such file\n"
    assert process("config", str(tmp_path / "none.yaml"), "--debug").stderr.startswith("Traceback")


@pytest.mark.skipif(os.name != "posix", reason="pipes to head")
def test_a_closed_pipe_is_no_error_message(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ra_blip", "config", str(tmp_path / "recipe.yaml")]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ra_blip.config import ModelConfig, ParamRule, RunConfig, dump_config, load_config, merged
from ra_blip.errors import ConfigError


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_then_recipe_then_overrides(tmp_path: Path) -> None:
    path = recipe(tmp_path, "seed: 3\ntrain: {steps: 7, clip: 2}\nstage: {name: rank}\n")
    run = load_config(path, ["train.steps=9", "out=a=b", "model.vision.config={model_type: resnet}"])
    assert (run.seed, run.train.steps, run.train.clip, run.train.batch_size) == (3, 9, 2.0, 32)
    assert (run.out, run.stage.name, run.model.vision.config) == ("a=b", "rank", {"model_type": "resnet"})
    assert load_config(None) == RunConfig()
    assert load_config(recipe(tmp_path, "")) == RunConfig()


def test_1e_4_is_a_number(tmp_path: Path) -> None:
    run = load_config(recipe(tmp_path, "params: [{match: '.*', lr: 1e-4}]\n"), ["model.retriever.temperature=5e-2"])
    assert run.params == [ParamRule(lr=1e-4)]
    assert run.model.retriever.temperature == 0.05


def test_an_override_reaches_into_a_list() -> None:
    assert load_config(None, ["params[0].lr=3e-5"]).params == [ParamRule(lr=3e-5, weight_decay=0.05)]
    assert load_config(None, ["params=[{match: a, lr: null}]"]).params == [ParamRule(match="a")]


def test_dump_and_load_are_inverse(tmp_path: Path) -> None:
    overrides = ["train.floor=1e-7", "data.categories=[a, b]", "model.generator.config.d_model=64", "init=null"]
    run = load_config(None, [*overrides, "out='007'"])
    assert load_config(recipe(tmp_path, dump_config(run))) == run
    assert run.out == "007"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=1", "Did you mean: 'steps'"),
        ("trian.steps=1", "Did you mean: 'train'"),
        ("train.lrr=1", r"Did you mean: 'params\[0\].lr'\? \(key 'train.lrr'\)"),  # the learning rate lives elsewhere
        ("train.batchsize=1", "Did you mean: 'batch_size'"),
        ("train.image_size=1", "Did you mean: 'model.vision.image_size'"),
        ("checkpoint.zzz=1", "Keys here: every, keep"),
        ("params=[{macth: a}]", "Did you mean: 'match'"),
    ],
)
def test_an_unknown_key_names_its_nearest(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"override {override!r}: Key ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", "'many' of type 'str' could not be converted to Integer"),
        ("train.steps=1e3", "could not be converted to Integer"),
        ("train.steps=", "not Optional"),
        ("stage.name=ranc", r"expected one of \['pretrain', 'retrieve', 'rank', 'answer'"),
        ("train=5", "int is not a subclass of TrainConfig"),
        ("params[3].lr=1", "key 'params"),
        ("train.steps", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("seed=[1", "did not find expected"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"override {override!r}")
    assert "\\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "recipe.yaml, line 2: duplicate key seed"),
        ("train:\n  steps: 1\n  clip: 1\n  steps: 2\n", "recipe.yaml, line 4: duplicate key steps"),
        ("train: {steps: 1\n", "recipe.yaml, line 2: did not find expected"),
        ("train:\n\tsteps: 1\n", "recipe.yaml, line 2: found character .* cannot start any token"),
        ("out: !!python/object/apply:os.getcwd []\n", "could not determine a constructor for the tag"),
        ("- 1\n", "recipe.yaml: a recipe is a mapping"),
        ("just words\n", "recipe.yaml: "),
        ("train: {lrr: 1}\n", r"Did you mean: 'params\[0\].lr'\? \(key 'train.lrr'\)"),
    ],
)
def test_a_wrong_recipe_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe(tmp_path, text))


def test_a_recipe_that_is_not_there_not_a_file_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"out: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"binary.yaml: "):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "${seed}", "a${seed}b", "${", "\\\\${seed}"])
def test_no_interpolation_and_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SECRET", "found-in-the-environment")
    with pytest.raises(ConfigError, match="interpolation") as of_override:
        load_config(None, [f"out={value}"])
    with pytest.raises(ConfigError, match=r"interpolation.*key 'out'") as of_recipe:
        load_config(recipe(tmp_path, f"out: '{value}'\n"))
    with pytest.raises(ConfigError, match=r"interpolation.*key 'data.categories\[1\]'"):
        load_config(recipe(tmp_path, f"data: {{categories: [a, '{value}']}}\n"))
    with pytest.raises(ConfigError, match=r"config.json: interpolation.*key 'vision.name'"):
        merged(ModelConfig(), {"vision": {"name": value}}, "config.json")
    assert "found-in" not in f"{of_override.value}{of_recipe.value}"


def test_a_dollar_sign_and_a_comment_are_no_interpolation(tmp_path: Path) -> None:
    assert load_config(recipe(tmp_path, "out: 5$ # not ${this}\n")).out == "5$"


def test_a_model_config_from_parsed_json() -> None:
    run = load_config(None, ["model.qformer.width=64", "model.vision.config={depths: [1, 2]}"])
    value: dict[str, Any] = dataclasses.asdict(run.model)
    assert merged(ModelConfig(), value, "config.json") == run.model
    with pytest.raises(ConfigError, match=r"^config.json: .*'widht'.*Did you mean: 'width'"):
        merged(ModelConfig(), {"qformer": {"widht": 1}}, "config.json")

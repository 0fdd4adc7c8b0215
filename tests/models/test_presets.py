"""Every preset at its real size, without values: parameter counts as published, and the memory that the table says."""

from __future__ import annotations

import pytest
import torch

from ra_blip.errors import CheckpointError
from ra_blip.models.folder import locate
from ra_blip.models.fusion import Retriever
from ra_blip.models.generator import build_generator
from ra_blip.models.presets import PRESETS
from ra_blip.models.ranker import Ranker
from ra_blip.models.reader import Reader
from ra_blip.models.vision import VisionTower

TOWER = 985_949_440
LLM_PARAMETERS = {
    "blip2-flan-t5-xl": 2_849_757_184,
    "blip2-opt-2.7b": 2_651_596_800,
    "instructblip-flan-t5-xl": 2_849_757_184,
    "instructblip-flan-t5-xxl": 11_135_332_352,
    "instructblip-vicuna-7b": 6_738_423_808,  # LLaMA's 6,738,415,616 and one token in and out
    "instructblip-vicuna-13b": 13_015_874_560,
    "ra-blip-t5-base": 222_903_552,
    "ra-blip-t5-large": 737_668_096,
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def numel(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_at_real_size(name: str) -> None:
    preset = PRESETS[name]
    config = preset.config
    with torch.device("meta"):
        generator = build_generator(config.generator, 32128, 0, 1, config.precision.llm)
        reader = Reader(config.qformer, config.generator, 30523, 1408, 257, 7, generator)
        trained = [Retriever(config.qformer, config.retriever, 30523, 1408), Ranker(generator.width)]
    llm = sum(parameter.numel() for parameter in generator.llm.parameters())
    assert llm == LLM_PARAMETERS[name]
    here = [value.numel() for key, value in reader.state_dict().items() if not key.startswith("generator.")]
    fp32 = sum(here) + sum(map(numel, trained))
    needed = (4 * fp32 + 2 * TOWER + BYTES[config.precision.llm] * llm) / 2**30
    assert abs(needed - preset.memory) < 0.06
    assert ("words.weight" in dict(reader.qformer.named_parameters())) == preset.reader_text
    assert not any(getattr(config, part).name for part in ("vision", "generator"))


def test_the_tower_of_all_presets() -> None:
    with torch.device("meta"):
        tower = VisionTower(PRESETS["blip2-opt-2.7b"].config.vision)
    assert (len(tower.state_dict()), numel(tower)) == (472, TOWER)
    assert (tower.width, tower.patches) == (1408, 257)


def test_a_config_is_the_callers_own() -> None:
    PRESETS["ra-blip-t5-base"].config.generator.config["d_model"] = 3
    assert PRESETS["ra-blip-t5-base"].config.generator.config["d_model"] == 768


def test_an_unknown_preset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"no preset of that name \(there are blip2-flan-t5-xl, .*t5-large\)"):
        locate("blip2-flan-t5-xll")


def test_files_are_named_and_sized() -> None:
    for preset in PRESETS.values():
        assert preset.lavis[0] == ("eva_vit_g.pth", 1935)
        assert all(name.endswith(".pth") and 400 < size < 2000 for name, size in preset.lavis)
        assert bool(preset.hf) != bool(preset.fresh)

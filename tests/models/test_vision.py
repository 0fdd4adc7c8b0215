from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ra_blip.config import VisionConfig
from ra_blip.errors import CheckpointError, ConfigError
from ra_blip.models.vision import VisionTower
from tests.tiny import close

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}


def tower(config: dict[str, Any], **changes: Any) -> VisionTower:
    torch.manual_seed(0)
    return VisionTower(VisionConfig(config=config, image_size=32, **changes)).eval()


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(shown: torch.Tensor) -> torch.Tensor:
    """By CLIP's mean and deviation, the default."""
    config = VisionConfig()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (shown / 255 - mean) / std


@pytest.mark.parametrize(("config", "patches", "width"), [(CLIP, 5, 16), (RESNET, 16, 8)])
def test_size_is_known_before_a_picture_is_seen(config: dict[str, Any], patches: int, width: int) -> None:
    built = tower(config)
    assert (built.patches, built.width) == (patches, width)  # CLIP: four patches and the class token
    assert built(pixels()).shape == (3, patches, width)


def test_a_convolutional_map_is_read_row_by_row() -> None:
    built = tower(RESNET)
    seen = normalised(pixels())
    state = built.model(seen).last_hidden_state  # (3, 8, 4, 4)
    assert close(built(pixels())[1, 6], state[1, :, 1, 2], 1e-4)


def test_pixels_are_normalised_by_mean_and_deviation() -> None:
    one = tower(CLIP, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    two = tower(CLIP, mean=[0.2, 0.4, 0.6], std=[0.5, 0.25, 0.125])
    grey = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)  # 0.2
    shown = (torch.tensor([0.2, 0.2, 0.2]) - torch.tensor([0.2, 0.4, 0.6])) / torch.tensor([0.5, 0.25, 0.125])
    expected = one.model(shown.view(1, 3, 1, 1).expand(1, 3, 32, 32)).last_hidden_state
    assert close(two(grey), expected) and not close(one(grey), expected, 1e-3)


def test_an_earlier_layer_can_be_read() -> None:
    last, before = tower(CLIP), tower(CLIP, layer=-2)
    states = last.model(normalised(pixels()), output_hidden_states=True).hidden_states
    assert close(before(pixels()), states[-2]) and not close(before(pixels()), last(pixels()), 1e-3)


SIDES = {key: value for key, value in CLIP.items() if key != "model_type"}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1}
KINDS: dict[str, tuple[dict[str, Any], int, int]] = {  # what is saved, patches and width of its tower
    "vit": (SIDES, 5, 16),
    "dinov2": ({**SIDES, "intermediate_size": None}, 5, 16),
    "clip": ({"vision_config": SIDES, "text_config": TEXT}, 5, 16),
    "siglip": ({"vision_config": SIDES, "text_config": TEXT}, 4, 16),
    "mobilenet_v2": ({"depth_multiplier": 0.2, "output_stride": 16}, 4, 1280),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_vision_model_by_folder_and_again_by_its_config(kind: str, tmp_path: Path) -> None:
    given, patches, width = KINDS[kind]
    torch.manual_seed(2)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{k: v for k, v in given.items() if v is not None}))
    model.save_pretrained(tmp_path)
    built = VisionTower(VisionConfig(name=str(tmp_path), image_size=32)).eval()
    assert (built.patches, built.width) == (patches, width)
    eye = getattr(model, "vision_model", model).eval()
    state = eye(normalised(pixels())).last_hidden_state
    expected = state if state.dim() == 3 else state.flatten(2).transpose(1, 2)
    assert close(built(pixels()), expected, 1e-4)
    again = tower(built.model.config.to_dict())  # as a saved model folder builds it
    again.load_state_dict(built.state_dict())
    assert close(again(pixels()), built(pixels()))


def test_a_frozen_model_stays_in_evaluation_mode() -> None:
    built = tower(RESNET, concepts=8)
    before = {name: value.clone() for name, value in built.model.named_buffers()}
    built.model.requires_grad_(False)
    built.train()(pixels())
    assert built.concepts.training and not any(module.training for module in built.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in built.model.named_buffers())
    built.model.requires_grad_(True)
    built.train()(pixels())
    assert built.model.training and any(not torch.equal(v, before[n]) for n, v in built.model.named_buffers())


def test_pixels_are_normalised_in_fp32_for_a_tower_in_bf16() -> None:
    full, half = tower(CLIP), tower(CLIP).bfloat16()
    given = []
    half.model.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert close(half(pixels()).float(), full(pixels()), 0.2)
    assert torch.equal(given[0], normalised(pixels()).bfloat16())


def test_layers_computed_twice_give_the_same_gradient() -> None:
    gradients = []
    for again in (False, True):
        built = tower(CLIP, gradient_checkpointing=again).train()
        built(pixels()).square().sum().backward()
        gradients.append({name: value.grad for name, value in built.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(close(value, gradients[1][name], 1e-6) for name, value in gradients[0].items())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({**CLIP, "image_size": 48}, {}, r"model\.vision: .*image_size 32.*set image_size to the model's own"),
        (CLIP, {"layer": -9}, r"layer -9"),
        ({"model_type": "no_such_eye"}, {}, r"model\.vision\.config: .*no_such_eye"),
        (RESNET, {"gradient_checkpointing": True}, "gradient_checkpointing"),
    ],
)
def test_a_tower_that_cannot_work(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tower(config, **changes)


def test_a_tower_that_could_not_be_built_again(tmp_path: Path) -> None:
    t5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    sides = {"vision_config": SIDES, "qformer_config": {**SIDES, "encoder_hidden_size": 16}, "text_config": t5}
    AutoModel.from_config(AutoConfig.for_model("blip-2", **sides)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not stand alone.*eva_vit"):
        VisionTower(VisionConfig(name=str(tmp_path), image_size=32))


def test_a_tower_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.vision"):
        VisionTower(VisionConfig())
    with pytest.raises(CheckpointError, match="no-such-folder/eye"):
        VisionTower(VisionConfig(name="./no-such-folder/eye"))

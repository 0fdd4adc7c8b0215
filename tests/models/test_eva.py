"""The EVA tower; that it is transformers' BLIP-2 tower stands in test_parity_modules.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ra_blip.config import VisionConfig
from ra_blip.errors import ConfigError
from ra_blip.models.eva import EvaConfig, EvaViT, resize_positions
from ra_blip.models.vision import VisionTower
from tests.tiny import close, shaken

SMALL = EvaConfig(width=16, layers=3, heads=2, ffn=24, patch=4, image_size=16)


def tower(**changes: Any) -> EvaViT:
    torch.manual_seed(0)
    return shaken(EvaViT(SMALL, **changes)).eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_patches_are_read_row_by_row_behind_the_class_token() -> None:
    eva, pixels = tower(), draw(2, 3, 16, 16)
    states = eva(pixels, layer=0)
    assert states.shape == (2, 17, 16)
    assert close(states[:, 0], (eva.cls_token + eva.pos_embed)[0, 0].expand(2, -1))
    patch = pixels[:, :, 4:8, 12:16].flatten(1) @ eva.patch_embed.weight.flatten(1).T + eva.patch_embed.bias
    assert close(states[:, 1 + 1 * 4 + 3], patch + eva.pos_embed[0, 1 + 1 * 4 + 3])


def test_no_norm_follows_the_last_block_and_earlier_states_can_be_read() -> None:
    eva, pixels = tower(), draw(2, 3, 16, 16)
    x = eva(pixels, layer=0)
    for number, block in enumerate(eva.blocks, 1):
        x = x + block.attention(block.attention_norm(x))
        x = x + block.ffn(block.ffn_norm(x))
        assert torch.equal(eva(pixels, layer=number), x) and torch.equal(eva(pixels, layer=number - 4), x)
    assert torch.equal(eva(pixels), x)


def test_a_key_bias_would_change_nothing() -> None:
    eva, pixels = tower(), draw(1, 3, 16, 16)
    before = eva(pixels)
    with torch.no_grad():
        for block in eva.blocks:
            block.attention.qkv.bias[16:32] += 1.5
    assert close(eva(pixels), before, 2e-5)


def test_a_larger_picture_interpolates_the_positions() -> None:
    eva = tower()
    assert eva(draw(1, 3, 24, 24)).shape == (1, 37, 16)
    wide = resize_positions(eva.pos_embed, 6, 6)
    assert wide.shape == (1, 37, 16) and torch.equal(wide[:, 0], eva.pos_embed[:, 0])
    assert resize_positions(eva.pos_embed, 4, 4) is eva.pos_embed
    rows = torch.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0])  # one value a row of patches
    ramp = torch.cat([torch.zeros(1), rows.repeat_interleave(8)])[None, :, None]  # (1, 65, 1)
    finer = resize_positions(ramp, 16, 16)[0, 1:, 0].unflatten(0, (16, 16))
    # new row 6 stands at old row 6.5 / 2 - 0.5 = 2.75; cubic convolution with a = -0.75, rows 1.75 to 1.25 away
    near = [1.25 * x**3 - 2.25 * x**2 + 1 for x in (0.75, 0.25)]
    far = [-0.75 * (x**3 - 5 * x**2 + 8 * x - 4) for x in (1.75, 1.25)]
    expected = far[0] * rows[1] + near[0] * rows[2] + near[1] * rows[3] + far[1] * rows[4]
    assert close(finer[6], expected.expand(16))
    assert resize_positions(ramp.bfloat16(), 16, 16).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [16, 24])
def test_it_is_a_vision_tower(size: int) -> None:
    torch.manual_seed(1)
    built = VisionTower(VisionConfig(config=SMALL.to_dict(), image_size=size, mean=[0.0] * 3, std=[0.5] * 3)).eval()
    assert (built.width, built.patches) == (16, 1 + (size // 4) ** 2)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert close(built(pixels), built.model(pixels / 127.5), 1e-5)
    earlier = VisionTower(
        VisionConfig(config=SMALL.to_dict(), image_size=size, layer=-2, mean=[0.0] * 3, std=[0.5] * 3)
    )
    earlier.load_state_dict(built.state_dict())
    assert close(earlier.eval()(pixels), built.model(pixels / 127.5, layer=2), 1e-5)


def test_its_config_goes_there_and_back() -> None:
    given = SMALL.to_dict()
    assert given.pop("model_type") == "eva_vit" and EvaConfig.from_dict(given) == SMALL
    assert EvaConfig.from_dict({}) == EvaConfig(1408, 39, 16, 6144, 14, 224, 1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 3}, r"unknown keys \['hidden_size'\] for 'eva_vit'; keys: \['width'"),
        ({"width": 30, "heads": 4}, "heads must divide width"),
        ({"image_size": 225}, "patch must divide image_size"),
    ],
)
def test_an_impossible_config(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionTower(VisionConfig(config={"model_type": "eva_vit", **given}))


def test_blocks_computed_twice_give_the_same_gradient() -> None:
    gradients = []
    for again in (False, True):
        eva = tower(gradient_checkpointing=again).train()
        eva(draw(2, 3, 16, 16)).square().sum().backward()
        gradients.append([parameter.grad for parameter in eva.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_nothing_is_allocated_to_know_the_real_size() -> None:
    with torch.device("meta"):
        built = VisionTower(VisionConfig(config={"model_type": "eva_vit"}, image_size=364))
    assert (built.width, built.patches) == (1408, 677)

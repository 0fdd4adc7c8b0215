from __future__ import annotations

from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(("config", "patches", "width"), [(CLIP, 5, 16), (RESNET, 16, 8)])
def test_size_is_known_before_a_picture_is_seen(config: dict[str, Any], patches: int, width: int) -> None:
    built = tower(config)
    assert (built.patches, built.width) == (patches, width)  # CLIP: four patches and the class token
    assert built(pixels()).shape == (3, patches, width)


def test_a_convolutional_map_is_read_row_by_row() -> None:
    built = tower(RESNET)
    seen = (pixels() / 255 - built.mean) / built.std
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
    states = last.model((pixels() / 255 - last.mean) / last.std, output_hidden_states=True).hidden_states
    assert close(before(pixels()), states[-2]) and not close(before(pixels()), last(pixels()), 1e-3)


def test_a_tower_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.vision"):
        VisionTower(VisionConfig())
    with pytest.raises(CheckpointError, match="no-such-folder/eye"):
        VisionTower(VisionConfig(name="./no-such-folder/eye"))

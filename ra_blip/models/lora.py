"""Low-rank adapters in the LLM through peft, an optional package.

Source: Hu et al. 2021 (LoRA).
"""

from __future__ import annotations

from typing import Any

import torch

from ra_blip.config import LoraConfig
from ra_blip.errors import ConfigError, MissingExtra


def add_lora(llm: Any, config: LoraConfig) -> None:
    """Put adapters into an LLM, in place; its class and methods stay, its own weights are frozen.

    The adapters are fp32 whatever the LLM is in: they are what is trained.

    Args:
        llm: a Hugging Face model.
        config: rank 1 or more.

    Raises:
        MissingExtra: peft is not installed.
        ConfigError: the targets are not layers of this LLM, or peft knows no default for it.
    """
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "peft") from None
    alpha: Any = config.alpha  # peft writes int, and divides it by the rank
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or None,
    )
    try:
        peft.inject_adapter_in_model(wanted, llm)
    except ValueError as error:
        raise ConfigError(f"model.generator.lora.targets: {str(error).splitlines()[0]}") from None
    for name, parameter in llm.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(torch.float32)

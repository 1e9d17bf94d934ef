"""A LoRA adapter in PEFT's layout (adapter_config.json, adapter_model.safetensors), read as low-rank changes.

Plain tensor algebra, as PEFT merges them: the change of a module is s lora_B lora_A, with s = alpha / r, or
alpha / sqrt(r) for rank-stabilised LoRA. Settings that would make the result something else are refused by
name, never skipped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from surgery.checkpoint import read_header
from surgery.delta.delta import LowRank
from surgery.errors import SurgeryError

_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, {}, []),
    "layer_replication": (None, []),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "use_qalora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
}
"""Settings of PEFT that change what the adapter computes, with the values that do not."""

_MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base's weights as well: the adapter counts from there."""


def read_adapter(folder: str | Path) -> dict[str, LowRank]:
    """The changes of a PEFT LoRA folder by module (dotted, as in the model), in the orientation the
    weights are stored in, float32.

    Raises:
        SurgeryError: a file is missing or damaged, a setting says that it is no plain LoRA, or its factors
            do not fit together.
    """
    folder = Path(folder)
    config, weights = _config(folder), folder / "adapter_model.safetensors"
    from safetensors.torch import load_file

    read_header(weights)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(weights).items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise SurgeryError(f"{weights} holds {name}, which is no LoRA factor of a linear layer")
        factors.setdefault(match[1], {})[match[2]] = tensor.float()
    if not factors:
        raise SurgeryError(f"{weights} holds no LoRA factors")
    found: dict[str, LowRank] = {}
    for module, pair in factors.items():
        if len(pair) != 2:
            raise SurgeryError(f"{weights}: {module} has lora_{min(pair)} only, not both factors")
        a, b = pair["A"], pair["B"]
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
            shapes = f"{tuple(b.shape)} and {tuple(a.shape)}"
            raise SurgeryError(f"{weights}: the factors of {module}, {shapes}, do not fit together")
        b = b * _scaling(config, module, a.shape[0], folder)
        if config.get("fan_in_fan_out"):  # stored as (in, out)
            a, b = b.T.contiguous(), a.T.contiguous()
        found[module] = LowRank(A=a, B=b)
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise SurgeryError(f"{folder} is no LoRA adapter: no readable adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise _odd(folder, "peft_type", config.get("peft_type"))
    for name, harmless in NEUTRAL.items():
        if name in config and config[name] not in harmless:
            raise _odd(folder, name, config[name])
    if str(config.get("init_lora_weights")).startswith(_MOVING):
        raise _odd(folder, "init_lora_weights", config["init_lora_weights"])
    return config


def _odd(folder: Path, name: str, value: Any) -> SurgeryError:
    return SurgeryError(f"{folder} is not a plain LoRA adapter: {name}={value!r} is not supported")


def _scaling(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """s. The rank is that of the factors, which `r` and `rank_pattern` only repeat. Of alpha_pattern the
    first that matches the end of the module's name counts, as in PEFT."""
    alpha = config.get("lora_alpha")
    try:
        patterns = dict(config.get("alpha_pattern") or {})
        matches = (p for p in patterns if re.match(rf"(.*\.)?({p})$", module))
        alpha = patterns.get(next(matches, None), alpha)
    except (re.error, TypeError, ValueError):
        raise _odd(folder, "alpha_pattern", config["alpha_pattern"]) from None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise SurgeryError(
            f"{folder}: its lora_alpha is {alpha!r}: a number is needed to scale {module}"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

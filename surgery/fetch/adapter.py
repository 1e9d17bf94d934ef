"""A LoRA adapter merged into its base: W' = W + scaling * B A, in fp32, rounded once.

Reads the PEFT folder layout (adapter_config.json, adapter_model.safetensors) with plain tensor
algebra. Settings that would make the result something else are refused by name, never skipped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."

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
    "arrow_config": (None,),
}
"""Settings of PEFT that change what the adapter computes, with the values that do not."""


def merge(base: Path, adapter: Path, out: Path) -> list[str]:
    """Write `base` with `adapter` merged in as the new folder `out`.

    Args:
        base: the checkpoint folder the adapter was trained on.
        adapter: a PEFT LoRA folder.
        out: the folder to make.

    Returns:
        The keys of the tensors that changed.

    Raises:
        SurgeryError: the folder is no plain LoRA adapter, or does not fit the base.
    """
    from surgery.checkpoint import Checkpoint, write_edited

    checkpoint = Checkpoint.open(base)
    pairs, config = _read(adapter)
    patches: dict[str, Callable[[], torch.Tensor]] = {}
    for module, (a, b) in pairs.items():
        key = f"{module}.weight"
        if key not in checkpoint.tensors:
            raise SurgeryError(f"{adapter}: {base} has no tensor {key} for it to change")
        shape = tuple(checkpoint.tensors[key].shape)
        transposed = bool(config.get("fan_in_fan_out"))
        wanted = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
        if a.shape[0] != b.shape[1] or shape != wanted:
            raise SurgeryError(
                f"{adapter}: factors {tuple(b.shape)} x {tuple(a.shape)} do not fit {key} {shape}"
            )
        patches[key] = _patch(checkpoint, key, a, b, scaling(config, module), transposed)
    return write_edited(checkpoint, out, patches)


def scaling(config: dict[str, Any], module: str) -> float:
    """What B A is multiplied with: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
    rank = _for_module(config.get("rank_pattern") or {}, module, config["r"])
    alpha = _for_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else float(rank))


def _for_module(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _patch(
    checkpoint: Any, key: str, a: torch.Tensor, b: torch.Tensor, factor: float, transposed: bool
) -> Callable[[], torch.Tensor]:
    def value() -> torch.Tensor:
        weight = checkpoint.read(key)
        change = factor * (b.float() @ a.float())
        return (weight.float() + (change.T if transposed else change)).to(weight.dtype)

    return value


def _read(
    adapter: Path,
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(adapter / "adapter_model.safetensors")
    except FileNotFoundError as error:
        missing = Path(error.filename or "adapter_model.safetensors").name
        raise SurgeryError(f"{adapter} is no LoRA adapter: it has no {missing}") from error
    except (ValueError, SafetensorError) as error:
        raise SurgeryError(f"{adapter}: not a readable adapter: {error}") from error
    if config.get("peft_type") != "LORA":
        raise SurgeryError(f"{adapter}: a {config.get('peft_type')} adapter, only LORA is known")
    for name, harmless in NEUTRAL.items():
        if name in config and config[name] not in harmless:
            raise SurgeryError(f"{adapter}: {name}={config[name]!r} is not supported")
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise SurgeryError(f"{adapter}: tensor {key} is no LoRA factor of a linear layer")
        factors.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in factors.items():
        if len(pair) != 2:
            raise SurgeryError(f"{adapter}: {module} has only one of its two factors")
    if not factors:
        raise SurgeryError(f"{adapter}: holds no factors")
    return {module: (pair["A"], pair["B"]) for module, pair in factors.items()}, config

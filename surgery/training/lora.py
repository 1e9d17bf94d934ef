"""LoRA (arXiv 2106.09685) as hooks: y' = y + scaling * B A x, the model's own weights untouched.

Nothing in the model is replaced, so taking the hooks off leaves it exactly as it was, and nn.Linear
and Conv1D modules need no different treatment.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgery.delta import LowRank
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.model.hooks import hooks

# Every matrix of a block, under the names transformers uses for them.
EVERYWHERE = r"(q|k|v|o|gate|up|down)_proj|c_attn|c_proj|c_fc|qkv_proj|gate_up_proj"


class LoRA:
    """Factors A (rank, in) and B (out, rank), float32, for every chosen module of a model.

    B starts at zero, so that the adapted model starts as the model. A is drawn from `seed`.
    """

    def __init__(
        self,
        model: Model,
        targets: str = EVERYWHERE,
        rank: int = 8,
        alpha: float = 16,
        seed: int = 0,
        layers: Sequence[int] | None = None,
    ) -> None:
        """Make factors for the modules that `targets` matches.

        targets: regular expression for the last part of a module's name. layers: the others are left alone,
        and below the lowest nothing is differentiated; all if None.

        Raises:
            SurgeryError: no module inside a layer has such a name.
        """
        self.rank, self.alpha = rank, alpha
        self.scaling = alpha / rank
        self.factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        generator = torch.Generator().manual_seed(seed)
        chosen = range(model.n_layers) if layers is None else layers
        wanted = tuple(f"{model.architecture.layer(i)}." for i in chosen)
        for name, module in model.hf.named_modules():
            if not name.startswith(wanted) or not re.fullmatch(targets, name.rpartition(".")[2]):
                continue
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
                continue
            conv1d = not isinstance(module, nn.Linear)
            n_in, n_out = weight.shape if conv1d else weight.shape[::-1]
            bound = 1 / math.sqrt(n_in)
            a = (torch.rand(rank, n_in, generator=generator) * 2 - 1) * bound
            b = torch.zeros(n_out, rank)
            self.factors[name] = (
                nn.Parameter(a.to(model.device)),
                nn.Parameter(b.to(model.device)),
            )
        if not self.factors:
            raise SurgeryError(f"no module of this model is called {targets!r}: nothing to train")

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser is given."""
        return [p for pair in self.factors.values() for p in pair]

    @contextlib.contextmanager
    def on(self, model: Model) -> Iterator[None]:
        """The model with the adapter, for the length of the block; gradients reach the factors."""
        with hooks() as attach:
            for name, (a, b) in self.factors.items():

                def add(
                    _m: Any, args: Any, _k: Any, output: torch.Tensor, a: Any = a, b: Any = b
                ) -> torch.Tensor:
                    low = nn.functional.linear(args[0].to(a.dtype), a)
                    return output + (self.scaling * nn.functional.linear(low, b)).to(output.dtype)

                attach.post(model.module(name), add)
            yield

    def changes(self, model: Model) -> dict[str, LowRank]:
        """The adapter as changes of stored tensors, for a delta."""
        found: dict[str, LowRank] = {}
        for name, (a, b) in self.factors.items():
            A, B = a.detach().float().cpu(), self.scaling * b.detach().float().cpu()
            if not isinstance(model.module(name), nn.Linear):
                A, B = B.T, A.T
            found[model.stored_key(f"{name}.weight")] = LowRank(A=A.contiguous(), B=B.contiguous())
        return found


def save_adapter(
    lora: LoRA, model: Model, folder: Path, base: str, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a PEFT folder: adapter_config.json and adapter_model.safetensors, factors in `dtype`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name}.lora_{which}.weight": factor.detach()
        .to("cpu", dtype)
        .contiguous()
        for name, pair in lora.factors.items()
        for which, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _last_parts(list(lora.factors)),
        "fan_in_fan_out": model.architecture.layout == "conv1d",
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return folder


def _last_parts(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})

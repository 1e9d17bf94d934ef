"""A delta as a LoRA adapter in PEFT's layout: adapter_config.json, adapter_model.safetensors, README.md.

The adapter's change is (lora_alpha / r) * lora_B @ lora_A. With lora_alpha equal to r it is exactly
ours, B @ A, so merging gives the weights that applying the delta gives, in float32. Where the ranks of
tensors differ, rank_pattern and alpha_pattern say so for each module.

    nn.Linear, weight (out, in)           lora_A = A (r, in)           lora_B = B (out, r)
    Conv1D, weight (in, out)              lora_A = B^T (r, in)         lora_B = A^T (out, r)
    nn.Embedding, weight (V, d)           lora_embedding_A = B^T (r, V), lora_embedding_B = A^T (d, r)

No model is loaded, and none is needed: the base only serves to check that the delta fits it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from surgery.architecture import TABLES, Architecture, for_config
from surgery.checkpoint import Checkpoint, atomic_folder
from surgery.delta import Delta, LowRank
from surgery.errors import SurgeryError
from surgery.stack.card import describe
from surgery.stack.lineage import Lineage

_NORMS = re.compile(r"(norm|ln_\w+)\.(weight|bias)$")


@dataclass(frozen=True)
class Exported:
    """What was written. residual: by tensor, |what a truncation left out| / |change|; empty if exact."""

    path: Path
    modules: int
    ranks: dict[str, int]
    residual: dict[str, float] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return not self.residual


@dataclass(frozen=True)
class _Module:
    """One module's factors under PEFT's names."""

    name: str
    tensors: dict[str, torch.Tensor]
    rank: int
    conv1d: bool


def to_lora(
    delta: Delta,
    out: str | Path,
    base: str | Path | Checkpoint | None = None,
    truncate: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a delta as an adapter folder that PEFT loads on the base.

    base: the checkpoint the delta was solved for; checked if given, and named in the adapter.
    truncate: rank to which changes that have no factors (dense ones) are cut by SVD. Without it they
        are refused: an adapter that is only nearly the edit must be asked for.

    Raises:
        SurgeryError: a change an adapter cannot hold, a base the delta was not made for, an `out`
            that exists.
    """
    if truncate is not None and truncate < 1:
        raise SurgeryError(f"truncate to rank {truncate}: at least 1")
    if not delta.tensors:
        raise SurgeryError("the delta changes nothing: there is no adapter to write")
    checkpoint = Checkpoint.open(base) if isinstance(base, str | Path) else base
    if checkpoint is not None:
        _check_base(delta, checkpoint)
    table = for_config(checkpoint.config) if checkpoint is not None else _table_of(delta)

    modules: list[_Module] = []
    residual: dict[str, float] = {}
    for key in sorted(delta.tensors):
        change, lost = _factors(key, delta.tensors[key], truncate)
        if lost is not None:
            residual[key] = lost
        modules.append(_module(key, change, table, delta))
    config = _config(modules, checkpoint)
    tensors = {name: t for module in modules for name, t in module.tensors.items()}
    ranks = {module.name: module.rank for module in modules}
    with atomic_folder(out, overwrite=overwrite) as folder:
        from safetensors.torch import save

        head = {
            "format": "pt",
            "surgery": json.dumps(
                {"delta": delta.id, "base_id": delta.base_id, "spec": delta.metadata.get("spec")},
                sort_keys=True,
                ensure_ascii=False,
            ),
        }
        (folder / "adapter_model.safetensors").write_bytes(save(tensors, metadata=head))
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
        card = _card(delta, config, ranks, residual)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Exported(Path(out), len(modules), ranks, residual)


# ---------------------------------------------------------------------- does it fit
def _check_base(delta: Delta, checkpoint: Checkpoint) -> None:
    lineage = Lineage.of(checkpoint)
    if lineage.edited:
        raise SurgeryError(
            f"{checkpoint.path} is edited already: an adapter goes on the base its delta was solved for"
        )
    if lineage.base_id != delta.base_id:
        raise SurgeryError(
            f"{delta.name} was solved for the base {delta.base_id[:12]}, but {checkpoint.path} is "
            f"{lineage.base_id[:12]}"
        )
    for key, change in delta.tensors.items():
        if tuple(checkpoint.ref(key).shape) != change.shape:
            raise SurgeryError(
                f"{delta.name} has shape {change.shape} for {key}, the checkpoint has "
                f"{tuple(checkpoint.ref(key).shape)}"
            )


def _table_of(delta: Delta) -> Architecture:
    """The table whose names the delta's tensors bear. Families that share names share a layout too."""
    for table in TABLES:
        if all(_parameter(key, table) is not None for key in delta.tensors):
            return table
    raise SurgeryError(
        f"cannot tell which architecture {next(iter(sorted(delta.tensors)))} belongs to: name the "
        "base checkpoint (--base)"
    )


def _parameter(key: str, table: Architecture) -> str | None:
    """The parameter's full name in the model, if the table knows names like it."""
    for name in (key, table.optional_prefix + key):
        if name.startswith((f"{table.layers}.", f"{table.embed}.", f"{table.lm_head}.")) or (
            table.positions is not None and name.startswith(f"{table.positions}.")
        ):
            return name
    return None


# ---------------------------------------------------------------------- one tensor
def _factors(key: str, change: Any, truncate: int | None) -> tuple[LowRank, float | None]:
    """Factors of a change, and the share of it that they leave out (None: nothing)."""
    if len(change.shape) != 2:
        what = "a bias" if key.endswith(".bias") else "a vector"
        raise SurgeryError(
            f"the delta changes {key}, {what}: a LoRA adapter holds matrices only; "
            "write the whole checkpoint with `surgery apply`"
        )
    if isinstance(change, LowRank):
        return change, None
    if truncate is None:
        raise SurgeryError(
            f"the change of {key} is dense {tuple(change.shape)} and has no exact low-rank factors: "
            "write the whole checkpoint with `surgery apply`, or ask for an approximation of a given "
            "rank (--truncate RANK)"
        )
    rank = min(truncate, *change.shape)
    u, s, v = torch.linalg.svd(change.value().double(), full_matrices=False)
    root = s[:rank].sqrt()
    total = float(s.norm())
    lost = float(s[rank:].norm()) / total if total else 0.0
    # The root goes to both sides, so that neither factor is tiny.
    A, B = (root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float()
    return LowRank(A=A.contiguous(), B=B.contiguous()), lost


def _module(key: str, change: LowRank, table: Architecture, delta: Delta) -> _Module:
    """The factors of a stored tensor as PEFT names and orients them."""
    parameter = _parameter(key, table)
    if parameter is None or _NORMS.search(key) or not parameter.endswith(".weight"):
        raise SurgeryError(
            f"the {table.name} table does not say which module {key} belongs to: a LoRA adapter "
            "cannot hold it"
        )
    name = parameter.removesuffix(".weight")
    A, B = change.A.detach().cpu(), change.B.detach().cpu()
    prefix = f"base_model.model.{name}"
    if name in (table.embed, table.positions):
        if name == table.embed and (delta.untie or delta.metadata.get("edits_head")):
            raise SurgeryError(
                f"the delta edits {key} of a model whose output head is the same tensor: an adapter "
                "changes both when merged and one when not, so it would not be this edit; write the "
                "whole checkpoint with `surgery apply`"
            )
        tensors = {"lora_embedding_A": B.T, "lora_embedding_B": A.T}
        found = {f"{prefix}.{part}": t.contiguous().clone() for part, t in tensors.items()}
        return _Module(name, found, change.rank, False)
    conv1d = table.layout == "conv1d" and name != table.lm_head
    first, second = (B.T, A.T) if conv1d else (A, B)
    found = {
        f"{prefix}.lora_A.weight": first.contiguous().clone(),
        f"{prefix}.lora_B.weight": second.contiguous().clone(),
    }
    return _Module(name, found, change.rank, conv1d)


# ---------------------------------------------------------------------- the files
def _config(modules: list[_Module], checkpoint: Checkpoint | None) -> dict[str, Any]:
    """adapter_config.json, with nothing in it that PEFT does not know."""
    common = Counter(module.rank for module in modules).most_common(1)[0][0]
    others = {module.name: module.rank for module in modules if module.rank != common}
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": str(checkpoint.path) if checkpoint is not None else None,
        "bias": "none",
        "fan_in_fan_out": any(module.conv1d for module in modules),
        "inference_mode": True,
        "lora_alpha": common,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": common,
        "rank_pattern": others,
        "target_modules": sorted(module.name for module in modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _card(
    delta: Delta,
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    residual: Mapping[str, float],
) -> str:
    """README.md of the adapter folder."""
    base = config["base_model_name_or_path"]
    lines = [
        "---",
        "library_name: peft",
        "tags: [lora, model-editing]",
        "---",
        "",
        f"# {delta.name}: an edit as a LoRA adapter",
        "",
        f"What it does: {describe(delta.metadata)}.",
        "",
        f"It belongs on one checkpoint only, the one with the id `{delta.base_id}`"
        + (f" (`{base}`)." if base else "."),
        f"It changes {len(ranks)} modules, at rank {_span(list(ranks.values()))}. "
        f"The delta it was made from has the id `{delta.id}`.",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("BASE", dtype="float32")',
        'model = PeftModel.from_pretrained(model, "THIS FOLDER").merge_and_unload()',
        "```",
        "",
    ]
    if residual:
        worst = max(residual.values())
        lines += [
            f"**It is an approximation**: {len(residual)} changes were cut to a lower rank, and up to "
            f"{worst:.1%} of a change (Frobenius norm) is missing. Measure it before use.",
            "",
        ]
    else:
        lines += [
            "Merged in float32 it gives the edited weights. `lora_alpha` equals `r`, so the factors "
            "are the change itself. In half precision, or left unmerged, results differ by rounding.",
            "",
        ]
    return "\n".join(lines)


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"

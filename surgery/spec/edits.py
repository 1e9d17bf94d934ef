"""The kinds of edit a spec may hold, as plain data. What they do is in `surgery/methods/`.

Every field that is left out is chosen by the method for the model in hand, and the choice is recorded
in the delta.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from surgery.spec.facts import Fact


class Part(BaseModel):
    """What all kinds share: unknown fields are errors, and nothing is coerced."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, allow_inf_nan=False
    )


class FactPart(Part):
    """What the kinds that change facts share. The defaults suit models from 100 M parameters up."""

    facts: list[Fact] | str = Field(description="the facts, or the path of a list of them")
    steps: int = Field(default=25, ge=1, description="most optimiser steps for a target")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="find targets with Adam at this rate; default: 0.5 for one layer (rome, emmet), the "
        "shortest sufficient steps for several",
    )
    clamp: float | None = Field(
        default=None, gt=0, description="longest change of the target, in lengths of what was there"
    )
    kl_factor: float = Field(
        default=0.0625, ge=0, description="weight of keeping what is said of the subject in general"
    )
    weight_decay: float | None = Field(default=None, ge=0)
    stop_loss: float = Field(default=0.05, gt=0, description="a fact is done at this loss")
    contexts: int = Field(
        default=5, ge=0, description="sampled texts put before the prompt, beside none"
    )
    prefixes: list[str] | None = Field(
        default=None, description="use these texts instead of sampling"
    )
    statistics: str | None = Field(
        default=None,
        description="text for the second moments: file or folder; default ships with us",
    )
    statistics_tokens: int | None = Field(default=None, ge=1)


class RomeEdit(FactPart):
    """One layer, rank one per fact (ROME with consistent keys, arXiv 2202.05262 and 2403.07175)."""

    kind: Literal["rome"] = "rome"
    layer: int | None = Field(default=None, ge=0)
    ridge: float = Field(
        default=1e-4, ge=0, description="added to the second moment, relative to its mean"
    )


class SpreadPart(FactPart):
    """Kinds that solve many facts jointly over several layers."""

    layers: list[int] | None = None
    accumulate: bool = Field(
        default=False, description="keep the keys of earlier edits in the solve"
    )


class MemitEdit(SpreadPart):
    """Many facts, several layers, one joint least squares (MEMIT, arXiv 2210.07229)."""

    kind: Literal["memit"] = "memit"
    statistics_weight: float | None = Field(
        default=None, gt=0, description="lambda: weight of the second moment against the facts"
    )


class AlphaEdit(SpreadPart):
    """MEMIT in the null space of what must be preserved (AlphaEdit, arXiv 2410.02355)."""

    kind: Literal["alphaedit"] = "alphaedit"
    accumulate: bool = True
    threshold: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of the keys' energy outside the protected space",
    )
    ridge: float | None = Field(
        default=None, gt=0, description="L2 of the solve, relative to the keys"
    )


class EmmetEdit(FactPart):
    """Equality-constrained batch at one layer (EMMET, arXiv 2403.14236)."""

    kind: Literal["emmet"] = "emmet"
    layer: int | None = Field(default=None, ge=0)
    ridge: float = Field(default=1e-3, ge=0, description="softening of the equalities, relative")


class FinetuneEdit(Part):
    """Constrained fine-tuning of one matrix: the honest baseline (FT-L, arXiv 2012.00363)."""

    kind: Literal["finetune"] = "finetune"
    facts: list[Fact] | str
    layer: int | None = Field(default=None, ge=0)
    steps: int = Field(default=25, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    norm_limit: float | None = Field(
        default=None, gt=0, description="largest change of any weight (L-infinity); none by default"
    )
    stop_loss: float = Field(default=0.05, gt=0)


Prompts = list[str] | str
WriterName = Literal["attention", "mlp", "embedding"]


class AblateEdit(Part):
    """Remove, weaken or amplify a direction of the residual stream (arXiv 2406.11717)."""

    kind: Literal["ablate"] = "ablate"
    positive: Prompts | None = Field(default=None, description="prompts that show the behaviour")
    negative: Prompts | None = Field(default=None, description="prompts that do not")
    spare: Prompts | None = Field(default=None, description="prompts whose behaviour is kept")
    sparing: Literal["distil", "shift", "orthogonal"] = Field(
        default="distil",
        description="distil: train a low-rank change to take it from prompts like the positive ones only; "
        "shift: move those where a linear detector sees them, in closed form; orthogonal: ablate what the "
        "direction has outside that of the spared prompts",
    )
    ridge: float = Field(default=0.1, gt=0, description="of the detector of sparing: shift")
    direction: str | list[str] | None = Field(
        default=None,
        description="saved direction files, instead of prompt sets; with spare: one, which is what is moved "
        "where the prompts say",
    )
    layer: int | None = Field(default=None, ge=0, description="where the direction is read")
    position: int | None = Field(
        default=None, lt=0, description="token of the prompt, from its end"
    )
    layers: list[int] | None = Field(default=None, description="layers whose writers are edited")
    writers: list[WriterName] = Field(default_factory=lambda: ["attention", "mlp"])
    strength: float | list[float] | dict[int, float] = Field(
        default=1.0,
        description="1 removes, 0.5 halves, negative amplifies; a list is a curve over depth",
    )
    chat: bool | None = Field(
        default=None, description="wrap prompts in the chat template, if there is one"
    )
    reader: Literal["plain", "whitened"] | None = Field(
        default=None,
        description="how much of the direction there is: its own component, or what reads it and is blind "
        "to ordinary text; by default as the selection found best, plain where nothing is selected",
    )
    project: bool = Field(
        default=False, description="keep what harmless prompts have along the direction"
    )
    norm: Literal["free", "columns"] = Field(
        default="free", description="columns: keep the length of every column of an edited matrix"
    )
    mean: Literal["zero", "keep"] = Field(
        default="zero",
        description="keep: move the removed component to the negatives' mean (affine)",
    )
    embeddings: Literal["untie", "both"] | None = Field(
        default=None,
        description="for a tied embedding among the writers: split it from the head, or both",
    )

    @field_validator("strength", mode="before")
    @classmethod
    def _layer_numbers(cls, value: Any) -> Any:
        # JSON has only string keys.
        if isinstance(value, dict):
            return {
                int(k) if isinstance(k, str) and k.isdecimal() else k: v for k, v in value.items()
            }
        return value


class DeltaEdit(Part):
    """Include a delta file, a LoRA adapter folder, or the difference of two checkpoints."""

    kind: Literal["delta"] = "delta"
    path: str
    minus: str | None = Field(
        default=None, description="a second checkpoint: the delta is path minus this one"
    )
    scale: float = 1.0


Edit = Annotated[
    RomeEdit | MemitEdit | AlphaEdit | EmmetEdit | FinetuneEdit | AblateEdit | DeltaEdit,
    Field(discriminator="kind"),
]


class Checks(Part):
    """What the gate enforces after the edit."""

    suite: str | None = None
    limits: dict[str, float] = Field(default_factory=dict)

"""The dial: the same edit at strengths from -1 to 1, and how far it can be turned safely.

The safe band is every strength around 0 up to the first that breaks a limit: on falling apart, on
divergence, on perplexity. An answer that stops refusing by falling apart is a miss, not a success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.model import Model
from surgery.progress import track
from surgery.spec import EditSpec
from surgery.spec.edits import AblateEdit
from surgery.stack import applied
from surgery.tune.metrics import Bench

STRENGTHS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
# incoherent: how much more than the base falls apart; the others as the metrics of those names.
LIMITS = {"incoherent": 0.05, "kl": 0.15, "perplexity": 0.03}


@dataclass(frozen=True)
class DialPoint:
    """A strength and every metric there."""

    strength: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Dial:
    """Points by strength, and the limits that make the safe band."""

    points: Sequence[DialPoint]
    limits: Mapping[str, float]

    def is_safe(self, point: DialPoint) -> bool:
        """Whether a point keeps every limit."""
        base = min(self.points, key=lambda p: abs(p.strength)).metrics
        for name, limit in self.limits.items():
            value = point.metrics[name] - (base[name] if name == "incoherent" else 0.0)
            if value > limit:
                return False
        return True

    @property
    def band(self) -> tuple[float, float] | None:
        """From the lowest to the highest strength that can be reached from 0 without breaking a limit."""
        low = high = 0.0
        for point in sorted((p for p in self.points if p.strength < 0), key=lambda p: -p.strength):
            if not self.is_safe(point):
                break
            low = point.strength
        for point in sorted((p for p in self.points if p.strength > 0), key=lambda p: p.strength):
            if not self.is_safe(point):
                break
            high = point.strength
        return (low, high) if low < high else None

    @property
    def limits_text(self) -> str:
        """The limits in words."""
        return ", ".join(f"{name} <= {limit:g}" for name, limit in self.limits.items())

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "points": [{"strength": p.strength, **p.metrics} for p in self.points],
            "limits": dict(self.limits),
            "band": list(self.band) if self.band else None,
        }


def dial(
    spec: EditSpec,
    model: Model,
    bench: Bench,
    strengths: Sequence[float] = STRENGTHS,
    limits: Mapping[str, float] = LIMITS,
) -> Dial:
    """Turn the spec's ablate part through the strengths. 0 is measured without any edit.

    The direction is the same at every strength: it is found once, and what changes is how much of it is
    taken out, which for an ablation is a factor on the delta.

    Raises:
        SurgeryError: the spec is not one ablate part with `norm: free`, which alone is linear.
    """
    [part, *more] = spec.edits
    if more or not isinstance(part, AblateEdit) or part.norm != "free":
        raise SurgeryError("the dial turns a spec of one ablate edit with norm: free")
    full = spec.model_copy(update={"edits": [part.model_copy(update={"strength": 1.0})]})
    delta = solve(full, model)
    points = []
    for strength in track(sorted(strengths), "turning the dial"):
        label = f"strength {strength:+.2f}"
        if strength == 0:
            points.append(DialPoint(0.0, bench.measure(model, label)))
            continue
        with applied(model, delta.scaled(strength)):
            points.append(DialPoint(strength, bench.measure(model, label)))
    return Dial(points, limits)

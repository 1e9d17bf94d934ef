"""Fits the refusal scorer to half of the hand labels and measures it on the other half.

    python -m surgery.measure.fit [--labels FILE] [--out FILE]

Halves are made by prompt, so that no prompt is on both sides. Multinomial logistic regression with an
L2 penalty on everything but the bias, which is convex: there is one answer, whatever the start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgery.measure import scorer

PENALTY = 0.03


def halves(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(fit, held out), by a hash of the prompt."""

    def even(prompt: str) -> bool:
        return hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0

    return [r for r in rows if even(r["prompt"])], [r for r in rows if not even(r["prompt"])]


def fit(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Weights by label."""
    from scipy.optimize import minimize

    x = np.array([scorer.features(row["answer"]) for row in rows])
    y = np.array([[row["label"] == k for k in scorer.LABELS] for row in rows], dtype=float)
    shape = (x.shape[1], len(scorer.LABELS))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(shape)
        z = x @ w
        z = z - z.max(1, keepdims=True)
        p = np.exp(z)
        p /= p.sum(1, keepdims=True)
        shrunk = w.copy()
        shrunk[0] = 0
        value = -np.log((p * y).sum(1)).mean() + PENALTY / 2 * (shrunk**2).sum()
        return float(value), (x.T @ (p - y) / len(x) + PENALTY * shrunk).ravel()

    w = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)
    return {k: [round(float(v), 3) for v in w[:, i]] for i, k in enumerate(scorer.LABELS)}


def main(argv: list[str] | None = None) -> int:
    """Fit, measure and write."""
    parser = argparse.ArgumentParser(description="fit the refusal scorer to hand labels")
    parser.add_argument("--labels", type=Path, default=Path("tests/data/refusal_labels.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/flinch/scorer.json"))
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in args.labels.read_text(encoding="utf-8").splitlines()]
    fitting, held_out = halves(rows)
    found: dict[str, Any] = {"features": list(scorer.FEATURES), "weights": fit(fitting)}
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    scorer.fitted.cache_clear()
    for name, part in (("fitted", fitting), ("held_out", held_out)):
        measured = scorer.measure([r["answer"] for r in part], [r["label"] for r in part])
        found[name] = _rounded(measured)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    scorer.fitted.cache_clear()
    print(json.dumps({k: found[k] for k in ("fitted", "held_out")}, indent=1))
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())

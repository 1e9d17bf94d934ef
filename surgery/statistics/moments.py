"""Second moments: C = E[k k^T] of the inputs of a down projection. They add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def gram(x: torch.Tensor, blocks: int = 6) -> torch.Tensor:
    """x^T x (d, d) for x (n, d), upper triangle only, by block rows: little over half of the products."""
    d = x.shape[1]
    total = x.new_zeros(d, d)
    edges = [d * i // blocks for i in range(blocks + 1)]
    for begin, end in zip(edges, edges[1:], strict=False):
        total[begin:end, begin:] = x[:, begin:end].T @ x[:, begin:]
    return total


def symmetric(upper: torch.Tensor) -> torch.Tensor:
    """The full matrix out of its upper triangle."""
    upper = upper.triu()
    return upper + upper.triu(1).T


@dataclass(frozen=True)
class Moment:
    """Second moment of one layer's keys: mean (d_ff, d_ff) float32 or float64, over `count` tokens."""

    mean: torch.Tensor
    count: int

    def __add__(self, other: Moment) -> Moment:
        """Statistics of both texts together."""
        total = self.count + other.count
        share = self.count / total
        return Moment(self.mean.double() * share + other.mean.double() * (1 - share), total)

    def spectrum(self) -> torch.Tensor:
        """Eigenvalues in ascending order, float64."""
        return torch.linalg.eigvalsh(self.mean.double())

    def report(self) -> dict[str, float]:
        """Conditioning and effective rank: is the sample large enough to solve against?

        effective_rank is exp of the entropy of the normalised spectrum (Roy and Vetterli, 2007).
        """
        values = self.spectrum().clamp_min(0)
        share = values / values.sum()
        entropy = -(share * share.clamp_min(1e-300).log()).sum()
        return {
            "tokens": self.count,
            "width": values.numel(),
            "largest": float(values[-1]),
            "median": float(values.median()),
            "smallest": float(values[0]),
            "condition": float(values[-1] / values[0].clamp_min(1e-300)),
            "effective_rank": float(entropy.exp()),
        }


class MomentFitter:
    """Streams batches of keys into a second moment. Sums are float64."""

    def __init__(self, width: int, device: torch.device) -> None:
        # MPS has no float64: sums live on the CPU there.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.sum = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        self.count = 0

    def update(self, keys: torch.Tensor) -> None:
        """keys: (n, width), any float dtype."""
        self.sum += gram(keys.float()).to(self.device)
        self.count += keys.shape[0]

    def fit(self) -> Moment:
        # float32 is what is stored: the same solve whether the statistics are fresh or found.
        return Moment(symmetric(self.sum / self.count).float(), self.count)

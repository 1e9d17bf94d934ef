"""`surgery diff`: which tensors of two checkpoints differ, by how much, and at what rank."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from surgery.cli.outcome import Outcome

if TYPE_CHECKING:
    import torch

    from surgery.checkpoint import Checkpoint

HELP = "which tensors of two checkpoints differ, by how much, at what rank"

# Ranks of larger matrices would take minutes each.
_WIDEST = 8192


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery diff`."""
    parser.add_argument("before", metavar="DIR", help="a checkpoint")
    parser.add_argument("after", metavar="DIR", help="another")
    parser.add_argument("--no-rank", action="store_true", help="skip the ranks, which take longest")


def run(args: argparse.Namespace) -> Outcome:
    """Compare tensor by tensor: those with equal hashes are not read, others two at a time."""
    from surgery.checkpoint import Checkpoint
    from surgery.progress import track

    before, after = Checkpoint.open(args.before), Checkpoint.open(args.after)
    shared = sorted(before.tensors.keys() & after.tensors.keys())
    different: list[dict[str, Any]] = []
    for key in track(shared, "comparing tensors"):
        if not _equal(before, after, key):
            different.append(_compare(before, after, key, ranks=not args.no_rank))
    data = {
        "before": str(before.path),
        "after": str(after.path),
        "same": len(shared) - len(different),
        "different": different,
        "only_before": sorted(before.tensors.keys() - after.tensors.keys()),
        "only_after": sorted(after.tensors.keys() - before.tensors.keys()),
    }
    return Outcome(data=data, text=_text(data))


def _equal(before: Checkpoint, after: Checkpoint, key: str) -> bool:
    a, b = before.tensors[key], after.tensors[key]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and before.hash(key) == after.hash(key)


def _compare(before: Checkpoint, after: Checkpoint, key: str, ranks: bool) -> dict[str, Any]:
    a, b = before.tensors[key], after.tensors[key]
    found: dict[str, Any] = {"key": key, "shape": list(b.shape), "dtype": b.dtype}
    if a.dtype != b.dtype:
        found["dtype_before"] = a.dtype
    if a.shape != b.shape:
        return {**found, "shape_before": list(a.shape)}
    old, new = before.read(key), after.read(key)
    change = new.float() - old.float()
    length = float(old.double().norm())
    found["norm"] = float(change.double().norm())
    found["relative"] = found["norm"] / length if length else None
    found["largest"] = float(change.abs().max())
    found["share_changed"] = float((change != 0).float().mean())
    if ranks and change.dim() == 2 and min(change.shape) <= _WIDEST:
        found["rank"] = numerical_rank(change, new)
    return found


def numerical_rank(change: torch.Tensor, rounded: torch.Tensor) -> int | None:
    """How many singular values of a change (m, n) stand out of the noise of rounding.

    rounded: the tensor the change led to, in the dtype it is stored in. Rounding it to a precision of
    eps adds to each element an error of at most eps |w| / 2, about evenly spread, so of standard
    deviation s <= eps rms(w) / sqrt(12). The largest singular value of such noise is
    s (sqrt(m) + sqrt(n)); twice that is taken for the noise. None where the change is not finite.
    """
    import torch

    if not torch.isfinite(change).all():
        return None
    eps = torch.finfo(rounded.dtype).eps if rounded.dtype.is_floating_point else 0.0
    rows, columns = change.shape
    spread = eps * float(rounded.double().square().mean().sqrt()) / 12**0.5
    noise = 2 * spread * (rows**0.5 + columns**0.5)
    values = torch.linalg.svdvals(change.double())
    exact = max(rows, columns) * torch.finfo(torch.float64).eps * float(values[0])
    return int((values > max(noise, exact)).sum())


def _text(data: dict[str, Any]) -> str:
    different = data["different"]
    lines = [f"{len(different)} tensors differ, {data['same']} are the same byte for byte"]
    if different:
        width = max(len(one["key"]) for one in different)
        lines += ["", f"{'':{width}}  {'change':>9}  {'largest':>9}  {'elements':>8}  {'rank':>5}"]
        lines += [f"{one['key']:{width}}  {_row(one)}" for one in different]
    for name in ("only_before", "only_after"):
        place = data[name.removeprefix("only_")]
        lines += [f"only in {place}: {key}" for key in data[name]]
    return "\n".join(lines)


def _row(one: dict[str, Any]) -> str:
    if "shape_before" in one:
        return f"shape {tuple(one['shape_before'])} became {tuple(one['shape'])}"
    relative = "new" if one["relative"] is None else f"{one['relative']:.3%}"
    rank = one.get("rank")
    dtype = f"  {one['dtype_before']} became {one['dtype']}" if "dtype_before" in one else ""
    return (
        f"{relative:>9}  {one['largest']:>9.3g}  {one['share_changed']:>8.1%}  "
        f"{'-' if rank is None else rank:>5}{dtype}"
    )

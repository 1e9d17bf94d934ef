"""Rows of a like length as batches: padding is what a batch wastes."""

from __future__ import annotations

from collections.abc import Sequence

# What a batch costs beside its tokens, in tokens: reading the weights once more. On two cores it is thirty.
BATCH_COST = 32


def partition(lengths: Sequence[int], cost: int = BATCH_COST) -> list[list[int]]:
    """Indices in batches of like length, so that tokens with padding, plus `cost` a batch, are fewest."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # least[n]: the cost of the n shortest rows, and where the last of their batches begins. A batch that
    # ends between two rows of one length is never better, so only ends of runs are looked at.
    least: dict[int, tuple[int, int]] = {0: (0, 0)}
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        if end < len(order) and lengths[order[end]] == longest:
            continue
        least[end] = min(
            (total + (end - begin) * longest + cost, begin) for begin, (total, _) in least.items()
        )
    groups, end = [], len(order)
    while end:
        begin = least[end][1]
        groups.append(sorted(order[begin:end]))
        end = begin
    return groups[::-1]

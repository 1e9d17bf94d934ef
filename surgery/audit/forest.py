"""Many short token rows read at once, each shared beginning once.

The four choices of a question differ in their last tokens, and the facts of one relation begin with the
same words. A batch is therefore not a list of rows but a forest: a token is read once behind everything
that stands before it, however many rows go on from there, and attention follows the branches,

    node i sees node j  iff  j = i or j is an ancestor of i,    position(i) = depth of i,

which is what it would see in a row of its own. Nothing is padding but the end of the last line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from surgery.audit.head import BATCH_TOKENS, hidden_of
from surgery.model import Model
from surgery.progress import meter

# Nodes of one line of a batch. Attention over a line costs its square, so lines stay short.
LINE = 256

Row = tuple[int, ...]


@dataclass
class Line:
    """One line of a batch. tokens, parents (-1: none) and depths by node, in order of insertion."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def missing(self, row: Row) -> int:
        """How many nodes the row would add."""
        node = -1
        for count, token in enumerate(row):
            found = self.children.get((node, token))
            if found is None:
                return len(row) - count
            node = found
        return 0

    def add(self, row: Row) -> list[int]:
        """Put a row in; returns its nodes, one a token."""
        path, node = [], -1
        for depth, token in enumerate(row):
            found = self.children.get((node, token))
            if found is None:
                found = self.children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(depth)
            path.append(found)
            node = found
        return path

    def sight(self) -> torch.Tensor:
        """(nodes, nodes) bool: who sees whom."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:  # a parent comes before its children, so its own row is complete
                seen[node] |= seen[parent]
        return seen


def plant(
    rows: Sequence[Row], most: int = LINE
) -> tuple[list[Line], dict[Row, tuple[int, list[int]]]]:
    """Rows as lines of at most `most` nodes (a longer row has a line of its own).

    Returns the lines, and for every row its line and its nodes there. The same rows give the same
    lines in whatever order they come.
    """
    lines: list[Line] = []
    where: dict[Row, tuple[int, list[int]]] = {}
    for row in sorted(set(rows)):  # neighbours in this order share the most
        if not lines or len(lines[-1].tokens) + lines[-1].missing(row) > most:
            lines.append(Line())
        where[row] = len(lines) - 1, lines[-1].add(row)
    return lines, where


@torch.no_grad()
def hidden_in_rows(
    model: Model, rows: Sequence[Row], wanted: Sequence[Sequence[int]], label: str = "measuring"
) -> tuple[torch.Tensor, list[list[int]]]:
    """Final hidden states of chosen positions of rows of tokens.

    Returns the states (n, d) of distinct nodes, and for each row where its wanted positions are in them.
    """
    lines, where = plant(rows)
    needed: dict[tuple[int, int], int] = {}
    for row, positions in zip(rows, wanted, strict=True):
        line, nodes = where[row]
        for position in positions:
            needed.setdefault((line, nodes[position]), 0)
    places = {key: number for number, key in enumerate(sorted(needed))}
    by_line: list[list[int]] = [[] for _ in lines]
    for line, node in places:
        by_line[line].append(node)

    found: list[torch.Tensor] = []
    batch = max(1, BATCH_TOKENS // LINE)
    with meter(label, len(lines)) as progress:
        for begin in range(0, len(lines), batch):
            some = lines[begin : begin + batch]
            hidden = hidden_of(model, _inputs(model, some))
            found += [hidden[i, by_line[begin + i]].clone() for i in range(len(some))]
            progress.advance(len(some))
    index = [
        [places[where[row][0], where[row][1][position]] for position in positions]
        for row, positions in zip(rows, wanted, strict=True)
    ]
    return torch.cat(found), index


def _inputs(model: Model, lines: Sequence[Line]) -> dict[str, torch.Tensor]:
    width = max(len(line.tokens) for line in lines)
    ids = torch.full((len(lines), width), model.tokenizer.pad_token_id or 0, dtype=torch.long)
    depth = torch.zeros((len(lines), width), dtype=torch.long)
    # What is padding sees itself: a softmax over nothing would be NaN.
    sight = torch.eye(width, dtype=torch.bool).repeat(len(lines), 1, 1)
    for i, line in enumerate(lines):
        size = len(line.tokens)
        ids[i, :size] = torch.tensor(line.tokens)
        depth[i, :size] = torch.tensor(line.depths)
        sight[i, :size, :size] = line.sight()
    mask = torch.zeros(sight.shape, dtype=model.dtype)
    mask.masked_fill_(~sight, torch.finfo(model.dtype).min)
    inputs = {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": depth}
    return {name: value.to(model.device) for name, value in inputs.items()}


def fits(model: Model, rows: Sequence[Row]) -> bool:
    """Whether every row is read whole: layers with a sliding window would need to see less of longer
    ones, which the mask above does not say."""
    config = model.hf.config
    window = getattr(getattr(config, "text_config", None) or config, "sliding_window", None)
    return not window or max(map(len, rows), default=0) <= window

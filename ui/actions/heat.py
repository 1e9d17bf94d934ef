"""Heat maps as HTML: tokens down, layers across. A layer can be clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ui.actions.tokens import shown
from ui.markup import Raw, esc


def heat_map(
    values: Any,
    tokens: Sequence[str],
    title: str,
    note: str = "",
    marked: range | None = None,
    best: int | None = None,
    pick: bool = True,
    texts: Sequence[Sequence[str]] | None = None,
) -> Raw:
    """values (layers, tokens): shade by size, below zero in grey. marked: tokens of the subject.

    best: a layer to point out. pick: layers are buttons. texts: what to write into the cells instead
    of nothing, (layers, tokens).
    """
    rows = values.tolist() if hasattr(values, "tolist") else values
    layers = len(rows)
    most = max((abs(v) for row in rows for v in row), default=0.0) or 1.0
    cells = ['<span class="corner"></span>']
    for layer in range(layers):
        css = "layer best" if layer == best else "layer"
        cells.append(
            f'<button class="{css}" data-do="layer" data-layer="{layer}" '
            f'title="edit layer {layer}">{layer}</button>'
            if pick
            else f'<span class="{css}">{layer}</span>'
        )
    for index, token in enumerate(tokens):
        css = "token subject" if marked is not None and index in marked else "token"
        cells.append(f'<span class="{css}">{esc(shown(token))}</span>')
        for layer in range(layers):
            value = rows[layer][index]
            side = "up" if value >= 0 else "down"
            text = esc(texts[layer][index]) if texts is not None else ""
            do = f' data-do="layer" data-layer="{layer}"' if pick else ""
            cells.append(
                f'<i class="{side}" style="--v:{min(1.0, abs(value) / most):.3f}"{do} '
                f'title="layer {layer}, {esc(shown(token))}: {value:.3f}">{text}</i>'
            )
    wide = " worded" if texts is not None else ""
    return Raw(
        f'<figure class="heat{wide}"><figcaption><b>{esc(title)}</b> {esc(note)}</figcaption>'
        f'<div class="scroll"><div class="grid" style="--layers:{layers}">{"".join(cells)}</div></div>'
        f'<small class="scale">layer → &nbsp; full shade: {most:.3g}</small></figure>'
    )

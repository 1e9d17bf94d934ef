"""Two answers side by side, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ui.actions.answers import Pair, Voice
from ui.highlight import marked, shaded
from ui.markup import Raw, esc


def pair_html(pair: Pair, surprise: Mapping[str, Sequence[float]] | None = None) -> str:
    """Both answers; differing words marked, or, once it is known, the surprise of the other side as
    shading."""
    if surprise and pair.finished:
        left = shaded(pair.left.pieces, surprise["left"])
        right = shaded(pair.right.pieces, surprise["right"])
    else:
        left, right = marked(pair.left.text, pair.right.text)
    verdict = ""
    if pair.finished:
        verdict = (
            '<p class="same">Both say the same, word for word.</p>'
            if pair.same
            else '<p class="same differs">They differ.</p>'
        )
    mark = f' data-stamp="{pair.stamp}"' if pair.stamp else ""
    return (
        f'<div class="pair"{mark}>{_side("Before", pair.left, left, pair.prompt)}'
        f"{_side('After', pair.right, right, pair.prompt)}</div>{verdict}"
    )


def _side(name: str, voice: Voice, text: Raw, prompt: str) -> str:
    caret = "" if voice.ended else '<span class="caret"></span>'
    count = f"{len(voice.ids)} tokens" if voice.ended else "writing"
    return (
        f'<section class="side"><header><h3>{name}</h3><span>{esc(voice.state)}</span></header>'
        f'<div class="said"><span class="asked">{esc(prompt)}</span>{text}{caret}</div>'
        f"<footer>{count}</footer></section>"
    )

"""The ladder as one inline SVG: for each rung base, edited and never-knew with their intervals."""

from __future__ import annotations

from html import escape

from surgery.ladder.result import Ladder, RungResult, Share
from surgery.ladder.table import state

WIDTH, ROW, LEFT, RIGHT, TOP = 880, 34, 310, 110, 44
_SIDES = (("base", "before"), ("edited", "after"), ("control", "never knew"))


def picture(found: Ladder) -> str:
    """Marks carry their figures as tooltips; colours come from the page's style sheet."""
    height = TOP + ROW * len(found.rungs) + 16
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        'aria-label="share of facts whose old answer is preferred, rung by rung">'
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = _x(share)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - 12}"/>')
        parts.append(
            f'<text class="soft" x="{x}" y="{TOP - 16}" text-anchor="middle">{share:.0%}</text>'
        )
    for line, rung in enumerate(found.rungs):
        parts += _rung(rung, TOP + ROW * line + ROW / 2, found.entry)
    return "".join([*parts, "</svg>"])


def _rung(rung: RungResult, y: float, entry: str | None) -> list[str]:
    label = escape(rung.label)
    parts = [f'<text x="{LEFT - 14}" y="{y + 4:.0f}" text-anchor="end">{label}</text>']
    for offset, (side, name) in zip((-8, 0, 8), _SIDES, strict=True):
        share: Share | None = getattr(rung, side)
        if share is None:
            continue
        low, high = (_x(v) for v in share.interval)
        at = y + offset
        title = (
            f"{name}: {share.share:.0%} of {share.n} "
            f"[{share.interval[0]:.0%}, {share.interval[1]:.0%}]"
        )
        parts.append(
            f'<g class="{side}"><title>{escape(title)}</title>'
            f'<line x1="{low}" x2="{high}" y1="{at:.0f}" y2="{at:.0f}"/>'
            f'<circle cx="{_x(share.share)}" cy="{at:.0f}" r="4.5"/></g>'
        )
    parts.append(
        f'<text class="{rung.status}" x="{WIDTH - RIGHT + 14}" y="{y + 4:.0f}">'
        f"{state(rung, entry)}</text>"
    )
    return parts


def _x(share: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

"""Plots of the report as inline SVG. Colours come from the page's style sheet, so they follow its
light and dark modes; every mark carries its value as a tooltip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from surgery.audit.report import Figure, Report

WIDTH = 760


def _svg(height: float, body: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "label", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def shares(report: Report, names: Sequence[str]) -> str:
    """Before and after of shares and probabilities, one line each: a ring before, a dot after, a tick
    for the sham edit."""
    figures = [f for f in report.figures if f.name in names and f.edited is not None]
    if not figures:
        return ""
    left, right, step = 290.0, WIDTH - 60.0, 30.0
    height = 34 + step * len(figures)
    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + (right - left) * tick
        body.append(_line(x, 22, x, height - 10, "grid"))
        body.append(_text(x, 14, f"{100 * tick:.0f} %", "axis", "middle"))
    for place, figure in enumerate(figures):
        y = 40 + step * place
        assert figure.edited is not None
        after = left + (right - left) * figure.edited
        body.append(_text(0, y + 4, figure.label))
        if figure.base is not None:
            before = left + (right - left) * figure.base
            body.append(_line(before, y, after, y, f"path {_direction(figure)}"))
            body.append(_mark(before, y, "before", f"before: {figure.base:.1%}"))
        if figure.sham is not None:
            x = left + (right - left) * figure.sham
            body.append(
                f'<g><title>sham edit: {figure.sham:.1%}</title>'
                f'{_line(x, y - 8, x, y + 8, "sham")}</g>'
            )  # fmt: skip
        body.append(_mark(after, y, "after", f"after: {figure.edited:.1%}"))
        body.append(_text(WIDTH, y + 4, f"{100 * figure.edited:.0f} %", "value", "end"))
    return _svg(height, body, "shares before and after the edit")


def _direction(figure: Figure) -> str:
    change = figure.change or 0.0
    if figure.goal == "same":
        return "worse" if change < -0.005 else ""
    good = change > 0 if figure.goal == "higher" else change < 0
    return "better" if good else ""


def _mark(x: float, y: float, kind: str, title: str) -> str:
    return (
        f'<g><title>{escape(title)}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="{kind}"/></g>'
    )  # fmt: skip


def divergence_bars(report: Report) -> str:
    """KL by kind of text, edited beside sham, on a logarithmic scale."""
    kinds = [k for k in report.texts if k.kl is not None and math.isfinite(k.kl)]
    if not kinds:
        return ""
    values = [v for k in kinds for v in (k.kl, k.kl_sham) if v]
    low = math.floor(math.log10(max(min(values, default=1e-4), 1e-7)))
    high = max(math.ceil(math.log10(max(values, default=1e-1))), low + 1)
    left, right, step = 130.0, WIDTH - 80.0, 34.0
    height = 34 + step * len(kinds)

    def place_of(value: float | None) -> float:
        if not value:
            return left
        share = (math.log10(value) - low) / (high - low)
        return left + (right - left) * min(max(share, 0.004), 1)

    body = []
    for power in range(low, high + 1):
        x = left + (right - left) * (power - low) / (high - low)
        body.append(_line(x, 22, x, height - 8, "grid"))
        body.append(_text(x, 14, f"{10.0**power:g}", "axis", "middle"))
    for place, kind in enumerate(kinds):
        y = 30 + step * place
        body.append(_text(0, y + 15, kind.kind))
        for top, value, style, name in (
            (y, kind.kl, "bar-after", "this edit"),
            (y + 13, kind.kl_sham, "bar-sham", "sham edit"),
        ):
            if value is None:
                continue
            width = place_of(value) - left
            body.append(
                f'<g><title>{escape(name)}: {value:.5f} nats</title><rect x="{left}" y="{top:.1f}" '
                f'width="{max(width, 1):.1f}" height="11" rx="1.5" class="{style}"/></g>'
            )
        body.append(_text(WIDTH, y + 14, f"{kind.kl:.4f}", "value", "end"))
    return _svg(height, body, "divergence from the base by kind of text")


def layer_lines(report: Report) -> str:
    """Length of the hidden state after each layer, against the base's."""
    lines = {
        name: [v for v in values if v is not None and math.isfinite(v)]
        for name, values in report.layers.items()
    }
    lines = {name: values for name, values in lines.items() if len(values) > 1}
    if "edited" not in lines:
        return ""
    every = [v for values in lines.values() for v in values]
    reach = max(max(abs(v - 1) for v in every) * 1.15, 0.002)
    left, right, top, bottom = 60.0, WIDTH - 20.0, 16.0, 176.0
    middle = (top + bottom) / 2

    def y_of(value: float) -> float:
        return middle - (value - 1) / reach * (bottom - top) / 2

    digits = max(0, math.ceil(-math.log10(reach)) + 1)
    body = []
    for value in (1 + reach, 1 + reach / 2, 1.0, 1 - reach / 2, 1 - reach):
        body.append(_line(left, y_of(value), right, y_of(value), "grid"))
        body.append(_text(left - 8, y_of(value) + 4, f"{value:.{digits}f}", "axis", "end"))
    count = len(lines["edited"])
    spacing = (right - left) / max(count - 1, 1)
    for layer in range(0, count, max(1, count // 10)):
        body.append(_text(left + spacing * layer, bottom + 20, str(layer), "axis", "middle"))
    body.append(_text(right, bottom + 36, "layer", "axis", "end"))
    for name, style in (("sham", "line-sham"), ("edited", "line-after")):
        if name in lines:
            points = " ".join(
                f"{left + spacing * i:.1f},{y_of(v):.1f}" for i, v in enumerate(lines[name])
            )
            body.append(f'<polyline points="{points}" class="{style}"/>')
    for layer in sorted({_layer(change.key) for change in report.weights} - {None}):  # type: ignore[type-var]
        if layer is not None and layer < count:
            x = left + spacing * layer
            body.append(
                f'<g><title>weights of layer {layer} were edited</title>'
                f'<path d="M{x - 5:.1f} {bottom + 2} h10 l-5 -8 z" class="edited-here"/></g>'
            )  # fmt: skip
    return _svg(bottom + 44, body, "length of hidden states by layer")


def _layer(key: str) -> int | None:
    return next((int(part) for part in key.split(".") if part.isdigit()), None)


def weight_bars(report: Report, most: int = 14) -> str:
    """Relative size of the change of each tensor, the largest ones."""
    changes = [c for c in report.weights if c.norm][:most]
    if not changes:
        return ""
    top = max(c.norm or 0.0 for c in changes)
    left, right, step = 330.0, WIDTH - 80.0, 22.0
    body = []
    for place, change in enumerate(changes):
        y = 6 + step * place
        size = change.norm or 0.0
        rank = "" if change.rank is None else f", rank {change.rank}"
        body.append(_text(0, y + 11, change.key, "code"))
        body.append(
            f'<g><title>{escape(change.key)}: {size:.3%} of its length{rank}</title>'
            f'<rect x="{left}" y="{y}" width="{max((right - left) * size / top, 1):.1f}" '
            f'height="13" rx="1.5" class="bar-after"/></g>'
        )  # fmt: skip
        body.append(_text(WIDTH, y + 11, f"{100 * size:.2f} %", "value", "end"))
    return _svg(6 + step * len(changes), body, "relative change of each tensor")

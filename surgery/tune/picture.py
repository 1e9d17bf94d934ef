"""Fronts and dials as text and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgery.directions.picture import picture_path, save_figure
from surgery.tune.dial import Dial
from surgery.tune.study import Tuned


def front_table(tuned: Tuned) -> str:
    """The Pareto front, the chosen point marked."""
    names = [o.name for o in tuned.objectives]
    params = sorted({name for point in tuned.front for name in point.params})
    lines = ["trial  " + "  ".join(f"{n:>17}" for n in names) + "   " + "  ".join(params)]
    for point in tuned.front:
        values = "  ".join(f"{point.values[n]:17.3f}" for n in names)
        tried = "  ".join(_short(point.params.get(p, "-")).rjust(len(p)) for p in params)
        mark = "  <- chosen" if point.number == tuned.chosen.number else ""
        lines.append(f"{point.number:5d}  {values}   {tried}{mark}")
    return "\n".join(lines)


def draw_front(tuned: Tuned, path: str | Path) -> Path:
    """All trials, the front joined up, the chosen point ringed. A third objective is the shade."""
    from matplotlib.figure import Figure

    path = picture_path(path)
    names = [o.name for o in tuned.objectives]
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    x, y = names[0], names[1] if len(names) > 1 else "kl"
    shade = names[2] if len(names) > 2 else None
    marks = axes.scatter(
        [p.values[x] for p in tuned.points],
        [p.values[y] for p in tuned.points],
        c=[p.values[shade] for p in tuned.points] if shade else "#9aa7b0",
        cmap="viridis" if shade else None,
        s=18,
    )
    if shade:
        figure.colorbar(marks, label=shade)
    line = sorted(tuned.front, key=lambda p: p.values[x])
    # The front of three objectives is a surface: a line through it would zigzag.
    style: dict[str, Any] = (
        {"linestyle": "none", "marker": "s", "markersize": 3} if shade else {"linewidth": 1}
    )
    axes.plot([p.values[x] for p in line], [p.values[y] for p in line], color="#1f5f8b", **style)
    chosen = tuned.chosen.values
    axes.scatter([chosen[x]], [chosen[y]], s=90, facecolors="none", edgecolors="#c0392b")
    axes.set(
        xlabel=x, ylabel=y, title=f"{len(tuned.points)} trials, {len(tuned.front)} on the front"
    )
    return save_figure(figure, path)


def dial_table(dial: Dial) -> str:
    """Every strength, its figures, and whether it is in the safe band."""
    names = list(dial.points[0].metrics)
    lines = ["strength  " + "  ".join(f"{n:>17}" for n in names)]
    for point in dial.points:
        values = "  ".join(f"{point.metrics[n]:17.3f}" for n in names)
        mark = "  safe" if dial.is_safe(point) else ""
        lines.append(f"{point.strength:+8.2f}  {values}{mark}")
    if dial.band is None:
        lines.append("no strength but 0 keeps the limits")
    else:
        lines.append(f"safe band: {dial.band[0]:+.2f} to {dial.band[1]:+.2f} ({dial.limits_text})")
    return "\n".join(lines)


def draw_dial(dial: Dial, path: str | Path) -> Path:
    """Refusals and incoherence above, damage below, the safe band shaded."""
    from matplotlib.figure import Figure

    path = picture_path(path)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    x = [p.strength for p in dial.points]
    colours = {
        "unsafe_refusals": "#c0392b",
        "safe_refusals": "#1f5f8b",
        "harmless_refusals": "#3a9a5b",
        "incoherent": "#777777",
    }
    for name, colour in colours.items():
        if name in dial.points[0].metrics:
            style = "--" if name == "incoherent" else "-"
            values = [p.metrics[name] for p in dial.points]
            upper.plot(x, values, style, color=colour, marker=".", label=name.replace("_", " "))
    lower.plot(x, [p.metrics["kl"] for p in dial.points], color="#555555", marker=".", label="KL")
    lower.plot(
        x,
        [p.metrics["perplexity"] for p in dial.points],
        ":",
        color="#555555",
        label="perplexity rise",
    )
    for axes in (upper, lower):
        if dial.band is not None:
            axes.axvspan(*dial.band, color="#3a9a5b", alpha=0.12, linewidth=0)
        axes.legend(frameon=False, fontsize=8)
    upper.set(ylabel="share of answers", ylim=(-0.03, 1.03), title="1 removes, -1 doubles")
    lower.set(xlabel="strength", ylabel="damage")
    return save_figure(figure, path)


def _short(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)

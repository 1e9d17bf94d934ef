"""The choice of a direction as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.checkpoint import atomic_file
from surgery.directions.select import Selection
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENDINGS = (".svg", ".png", ".pdf")


def table(selection: Selection) -> str:
    """The candidates that were tried, best first. left: of the behaviour when the direction is removed from
    the layers "out of"; KL and perplexity are what that costs; added: what adding it brings on."""
    lines = [" layer  position  out of  reader    separates   left  KL      perplexity  added"]
    for number, c in enumerate(selection.tried):
        assert c.effect is not None
        e = c.effect
        verdict = "; ".join(filter(None, ["chosen" if number == 0 else None, c.dropped]))
        lines.append(
            f"{c.layer:6d} {c.position:9d}  {f'{c.first}-{c.last}':>6}"
            f"  {'whitened' if c.whitened else 'plain   '}"
            f" {c.separability:10.2f} {e.left:6.1%}"
            f"  {e.kl:<6.3f}  {e.perplexity:+10.1%} {c.induce:6.0%}   {verdict}".rstrip()
        )
    return "\n".join(lines)


def draw(selection: Selection, path: str | Path) -> Path:
    """Write the picture (.svg, .png or .pdf, by the name's ending).

    Left: how well every candidate separates held-out prompts, by layer and position. Right: what
    removing and adding the tried ones does, by layer.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    path = picture_path(path)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions = sorted({c.position for c in selection.candidates})
    for shade, position in enumerate(reversed(positions)):
        line = sorted(
            (c for c in selection.candidates if c.position == position), key=lambda c: c.layer
        )
        left.plot(
            [c.layer for c in line],
            [c.separability for c in line],
            marker="o",
            markersize=3,
            color=str(0.1 + 0.65 * shade / max(1, len(positions) - 1)),
            label=f"token {position}",
        )
    chosen = selection.direction
    left.axvline(chosen.layer, color="#c0392b", linewidth=0.8)
    left.set(xlabel="layer", ylabel="gap / spread, held-out prompts", title="Separation")
    left.legend(frameon=False, fontsize=8)
    tried = sorted(selection.tried, key=lambda c: (c.layer, c.position, c.first, c.last))
    effects = [c.effect for c in tried if c.effect is not None]
    at = [c.layer for c in tried]
    series: tuple[tuple[list[float], Any, str, str], ...] = (
        ([e.left for e in effects], "v", "#1f5f8b", "left when removed"),
        ([c.induce for c in tried], "^", "#c0392b", "there when added"),
        ([e.kl for e in effects], "x", "#777777", "KL on negatives (nats)"),
        ([e.perplexity for e in effects], "+", "#3a9a5b", "perplexity rise, ordinary text"),
    )
    for values, marker, color, label in series:
        right.scatter(at, values, marker=marker, color=color, s=28, label=label)
    right.axhline(1, color="#cccccc", linewidth=0.8, zorder=0)
    right.axvline(chosen.layer, color="#c0392b", linewidth=0.8)
    edited = chosen.layers or [0]
    right.set(
        xlabel="layer where it was read",
        ylim=(min(-0.03, *(e.perplexity for e in effects)), 1.15),
        title=f"Tried: layer {chosen.layer}, token {chosen.position}, "
        f"out of layers {edited[0]} to {edited[-1]}",
    )
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, path)


def picture_path(path: str | Path) -> Path:
    """Raises SurgeryError unless the name's ending is one a picture can be written as."""
    path = Path(path)
    if path.suffix not in _ENDINGS:
        raise SurgeryError(f"{path}: a picture is {', '.join(_ENDINGS)}")
    return path


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix, {})
    with atomic_file(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "surgery"}):
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=undated)
    return path

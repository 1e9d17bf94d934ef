"""A causal trace as a picture (matplotlib), as a page, and as a few lines of text."""

from __future__ import annotations

import html as escaping
import io
from pathlib import Path
from typing import Any

from surgery.checkpoint import atomic_file
from surgery.errors import SurgeryError
from surgery.trace.causal import CausalTrace
from surgery.trace.restoring import TraceKind

SUFFIXES = (".png", ".svg", ".pdf")

_INK, _FAINT, _PAPER, _ACCENT = "#1d2433", "#8a93a6", "#ffffff", "#c2410c"
# One ramp a panel, each from the paper's white, so that no effect is no ink.
_RAMPS = {
    "stream": ("#ffffff", "#dfe3f6", "#97a3dd", "#4b57b5", "#232a6b"),
    "mlp": ("#ffffff", "#d6efe4", "#7cc9a8", "#25936b", "#0b4a35"),
    "attention": ("#ffffff", "#fbe3d6", "#f0a582", "#cf5f38", "#6e2313"),
}
_TITLES = {"stream": "Residual stream", "mlp": "MLP", "attention": "Attention"}
_SHADES = " ▁▂▃▄▅▆▇█"


def draw(trace: CausalTrace) -> Any:
    """The trace as a matplotlib Figure: a heat map per kind of state, tokens by layers."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(trace.effects)
    rows = len(trace.tokens) - _from(trace)
    width, height = 2.6 + 3.9 * len(kinds), 2.75 + 0.31 * rows
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height), facecolor=_PAPER)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            1,
            len(kinds),
            left=1.75 / width,
            right=1 - 0.25 / width,
            top=1 - 1.42 / height,
            bottom=1.1 / height,
            wspace=0.14,
        )
        for column, kind in enumerate(kinds):
            axes = figure.add_subplot(grid[0, column])
            image = _panel(axes, trace, kind, labels=column == 0)
            _scale(figure, axes, image, height)
        _headline(figure, trace, height, width)
    return figure


def _panel(axes: Any, trace: CausalTrace, kind: TraceKind, labels: bool) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    begin = _from(trace)
    effect = trace.effects[kind][:, begin:].T.numpy()
    ramp = LinearSegmentedColormap.from_list(kind, _RAMPS[kind])
    top = max(float(effect.max()), 1e-6)
    image = axes.pcolormesh(
        effect, cmap=ramp, vmin=0, vmax=top, edgecolors="#eef0f4", linewidth=0.4
    )
    axes.set_ylim(effect.shape[0], 0)
    axes.set_xlim(0, effect.shape[1])

    title = _TITLES[kind]
    if kind != "stream" and trace.window > 1:
        title += f"  ·  {trace.window} layers at a time"
    axes.set_title(title, loc="left", fontsize=10, color=_INK, fontweight="bold", pad=7)
    step = max(1, round(effect.shape[1] / 6))
    ticks = list(range(0, effect.shape[1], step))
    axes.set_xticks([t + 0.5 for t in ticks], [str(t) for t in ticks], fontsize=8, color=_INK)
    axes.set_xlabel("layer", fontsize=8.5, color=_FAINT, labelpad=2)
    names = [_shown(token) for token in trace.tokens[begin:]]
    axes.set_yticks([r + 0.5 for r in range(len(names))], names if labels else [""] * len(names))
    for index, label in enumerate(axes.get_yticklabels()):
        inside = trace.subject[0] <= index + begin <= trace.subject[1]
        label.set(fontsize=9.5, color=_ACCENT if inside else _INK)
        label.set_fontweight("bold" if inside else "normal")
    axes.tick_params(length=0, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)

    layer, token, value = trace.best(kind)
    if value > 0:
        axes.plot(
            layer + 0.5, token - begin + 0.5, "o", ms=6.5, mfc="none", mec=_PAPER, mew=2.6, zorder=4
        )
        axes.plot(
            layer + 0.5,
            token - begin + 0.5,
            "o",
            ms=6.5,
            mfc="none",
            mec=_ACCENT,
            mew=1.4,
            zorder=5,
        )
    return image


def _scale(figure: Any, axes: Any, image: Any, height: float) -> None:
    place = axes.get_position()
    bar = figure.add_axes((place.x0, 0.43 / height, place.width * 0.55, 0.09 / height))
    figure.colorbar(image, cax=bar, orientation="horizontal")
    top = image.get_clim()[1]
    bar.set_xticks([0, top], ["0", f"+{top:.2f}" if top >= 0.01 else f"+{top:.1e}"], fontsize=7.5)
    bar.tick_params(length=0, pad=2, labelcolor=_FAINT)
    for label, side in zip(bar.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    bar.spines[:].set_visible(False)
    if hasattr(image.colorbar, "outline"):
        image.colorbar.outline.set_visible(False)


def _headline(figure: Any, trace: CausalTrace, height: float, width: float) -> None:
    left = 0.3 / width
    figure.text(
        left,
        1 - 0.34 / height,
        _question(trace),
        fontsize=13,
        color=_INK,
        fontweight="bold",
        va="center",
    )
    figure.text(left, 1 - 0.66 / height, _finding(trace), fontsize=9.5, color=_INK, va="center")
    figure.text(
        left,
        0.14 / height,
        f"Colour: probability of “{trace.answer}” that restoring one clean state gives back. "
        f"Noise {trace.sigma:.2g} on the subject (orange), mean of up to {trace.samples} samples. "
        "Ring: the strongest state"
        + (" (of the stream, before the last token)." if "stream" in trace.effects else "."),
        fontsize=7.5,
        color=_FAINT,
        va="center",
    )


def _question(trace: CausalTrace) -> str:
    prompt = trace.prompt if len(trace.prompt) <= 80 else "…" + trace.prompt[-79:]
    return f"{prompt} → {trace.answer}"


def _finding(trace: CausalTrace) -> str:
    said = (
        f"p(“{trace.answer}”) is {trace.base:.2f}, with noise on “{trace.subject_text}” "
        f"{trace.corrupted:.2f}."
    )
    layer, token, value = trace.state
    if value <= 0:
        return said + " Restoring the subject gives nothing back at any layer."
    what = {"mlp": "the MLPs around ", "attention": "attention around ", "stream": ""}[
        trace.main_kind
    ]
    return (
        said + f" Of the subject’s states, {what}layer {layer} at “{_shown(trace.tokens[token])}” "
        f"{'give' if trace.main_kind == 'mlp' else 'gives'} back most, {value:+.2f}."
    )


def save_picture(trace: CausalTrace, path: str | Path) -> Path:
    """Draw the trace into a .png, .svg or .pdf file.

    Raises:
        SurgeryError: another suffix, or a place that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise SurgeryError(f"{path}: a picture ends in {', '.join(SUFFIXES)}")
    with atomic_file(path) as temporary:
        _write(trace, temporary, path.suffix.lower()[1:])
    return path


def _write(trace: CausalTrace, target: Any, form: str) -> None:
    """The same trace gives the same bytes: no dates, and names in an SVG that do not change."""
    import matplotlib

    blank = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",)}.get(form, ())
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "surgery"}):
        draw(trace).savefig(target, format=form, dpi=170, metadata=dict.fromkeys(blank))


def html(trace: CausalTrace) -> str:
    """A page that holds everything it shows: the picture as SVG and the figures as a table."""
    stream = io.StringIO()
    _write(trace, stream, "svg")
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    rows = "".join(
        f"<tr><th>{_TITLES[kind]}</th><td>{layer}</td><td>{escaping.escape(_shown(trace.tokens[token]))}"
        f"</td><td>{value:+.3f} ± {float(trace.error[kind][layer, token]):.3f}</td></tr>"
        for kind in trace.effects
        for layer, token, value in [trace.best(kind)]
    )
    notes = "".join(f"<p>{escaping.escape(note)}</p>" for note in trace.notes)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>Causal trace: {escaping.escape(_question(trace))}</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;color:#1d2433;background:#fff;max-width:78rem;"
        "margin:2rem auto;padding:0 1rem}svg{width:100%;height:auto}"
        "table{border-collapse:collapse}td,th{padding:.3rem .9rem;border-top:1px solid #e3e6ec;"
        "text-align:left}</style></head><body>"
        f"{svg}{notes}<table><tr><th>strongest</th><th>layer</th><th>token</th>"
        f"<th>effect ± standard error</th></tr>{rows}</table></body></html>\n"
    )


def heat_map_text(trace: CausalTrace) -> str:
    """The trace in characters: one line a token, one column a layer."""
    begin = _from(trace)
    names = [_shown(token) for token in trace.tokens[begin:]]
    marks = ["*" if begin + i <= trace.subject[1] else " " for i in range(len(names))]
    wide = max(len(name) for name in names)
    lines = [_question(trace), _finding(trace), *trace.notes]
    for kind, effect in trace.effects.items():
        layer, token, value = trace.best(kind)
        lines += [
            "",
            f"{_TITLES[kind]}: strongest at layer {layer}, {trace.tokens[token].strip()!r}, "
            f"{value:+.3f} ± {float(trace.error[kind][layer, token]):.3f}",
        ]
        top = max(float(effect.max()), 1e-9)
        for index, name in enumerate(names):
            column = effect[:, begin + index].tolist()
            cells = "".join(_SHADES[round(max(0.0, v) / top * (len(_SHADES) - 1))] for v in column)
            lines.append(f"  {name:>{wide}}{marks[index]}│{cells}│")
        lines.append(f"  {'layer':>{wide}}  {_ruler(effect.shape[0])}")
    return "\n".join(lines)


def _ruler(layers: int) -> str:
    """Layer numbers under their columns, every fifth."""
    cells = [" "] * (layers + 3)
    for layer in range(0, layers, 5):
        for offset, digit in enumerate(str(layer)):
            cells[layer + offset] = digit
    return "".join(cells).rstrip()


def _from(trace: CausalTrace) -> int:
    """The first token shown: before the subject there is nothing to see."""
    return trace.subject[0]


def _shown(token: str) -> str:
    text = token.replace("\n", "↵").strip()
    return text if len(text) <= 16 else text[:15] + "…"

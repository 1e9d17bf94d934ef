"""Fragments of HTML that several screens show. Whatever comes from a model or a file is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ui.jobs import Step


def esc(text: Any) -> str:
    """Text as HTML. Braces and dollars are escaped too: Gradio fills its templates with this."""
    safe = escape(str(text), quote=True)
    return (
        safe.replace("{", "&#123;")
        .replace("}", "&#125;")
        .replace("$", "&#36;")
        .replace("`", "&#96;")
    )


def notice(text: str, kind: str = "error") -> str:
    """One message. kind: error, warn, good or plain."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="notice {kind}" role="{role}">{esc(text)}</div>'


def notices(texts: Iterable[str], kind: str = "warn") -> str:
    return "".join(notice(text, kind) for text in texts)


def empty(text: str) -> str:
    """What stands where nothing is shown yet: what would be here, and how to get it."""
    return f'<div class="empty">{esc(text)}</div>'


def progress(step: Step) -> str:
    """A bar for work that is going on."""
    share = step.share
    known = share is not None
    label = step.label[:1].upper() + step.label[1:]
    amount = f"{step.done:g} of {step.total:g}" if known else ""
    bar = (
        f'<i style="width:{100 * (share or 0):.1f}%"></i>' if known else '<i class="wandering"></i>'
    )
    return (
        f'<div class="progress" role="status"><span>{esc(label)}</span>'
        f"<em>{esc(amount)}</em><em>{step.seconds:.0f} s</em><b>{bar}</b></div>"
    )


def state_line(state: str, left: str = "", stamp: str = "") -> str:
    """Which state of the model a result is about; it stands above every result.

    stamp: that state's mark. Once the model is in another state, the line says so by itself.
    """
    head = f"{esc(left)} " if left else ""
    mark = f' data-stamp="{stamp}"' if stamp else ""
    return f'<p class="about"{mark}>{head}<span>{esc(state)}</span></p>'


def facts_list(rows: Sequence[tuple[str, Any]]) -> str:
    """Name and value, one a row. A value that is HTML already is passed as `Raw`."""
    items = "".join(f"<dt>{esc(name)}</dt><dd>{cell(value)}</dd>" for name, value in rows)
    return f'<dl class="facts">{items}</dl>'


class Raw(str):
    """HTML that is safe to put on the page as it is."""


def cell(value: Any) -> str:
    return str(value) if isinstance(value, Raw) else esc(value)


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], kinds: str = "", css: str = ""
) -> str:
    """A table. kinds: one letter a column, `t` text, `n` number, `m` monospace."""
    kinds = kinds or "t" * len(heads)
    names = {"t": "", "n": "num", "m": "mono"}
    top = "".join(
        f'<th class="{names[k]}" scope="col">{esc(h)}</th>'
        for h, k in zip(heads, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{names[k]}">{cell(c)}</td>' for c, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="table {css}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def bar(share: float, css: str = "") -> Raw:
    """A thin bar for a probability, 0..1."""
    return Raw(
        f'<span class="bar {css}"><i style="width:{100 * max(0.0, min(1.0, share)):.1f}%"></i></span>'
    )


def percent(value: float) -> str:
    """A probability as people read it: 43 %, 0.2 %, < 0.01 %."""
    if value >= 0.0995:
        return f"{100 * value:.0f} %"
    if value >= 0.001:
        return f"{100 * value:.1f} %"
    return f"{100 * value:.2f} %" if value >= 1e-4 else "< 0.01 %"


def short(id: str) -> str:
    return id[:12]

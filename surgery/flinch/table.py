"""The flinch test as text."""

from __future__ import annotations

from surgery.flinch.measure import Behaviour, Flinch
from surgery.flinch.sets import KINDS
from surgery.measure.scorer import fitted

_TITLES = {"safe_scary": "safe but scary", "unsafe": "unsafe", "harmless": "harmless"}
_FRAMINGS = {"template": "", "system": "  (system prompt)"}


def table(result: Flinch) -> str:
    """Headlines first, then rates side by side, then what the scorer is worth."""
    lines = [headline(result, name) for name in result.names[1:]]
    lines += [""] if lines else []
    lines += _rates(result)
    for name in result.names[1:]:
        lines += ["", *_comparison(result, name)]
    lines += ["", scorer_line()]
    return "\n".join(lines)


def headline(result: Flinch, name: str) -> str:
    """Selectivity, what it is made of, and what it cost."""
    found = result.comparison(name)
    parts = []
    if found.get("selectivity") is not None:
        parts.append(f"selectivity {found['selectivity']:+.2f}")
    for kind, word in (("safe_scary", "false"), ("unsafe", "true")):
        if kind in found:
            was, now = found[kind]["before"], found[kind]["after"]
            parts.append(f"{word} refusals {was:.0%} -> {now:.0%}")
    cost = result.damage.get(name)
    if cost is not None:
        parts.append(f"KL {cost.kl:.3f}, perplexity {cost.perplexity_rise:+.1%}")
    return f"{name}: " + "; ".join(parts)


def scorer_line() -> str:
    """How far the labels can be trusted."""
    held = fitted()["held_out"]
    parts = [
        f"{name} {held[name]['precision']:.2f} / {held[name]['recall']:.2f}"
        for name in ("refusal", "full", "partial")
    ]
    return (
        f"scorer, on {held['n']} hand-labelled answers it was not fitted to (precision / recall): "
        + ", ".join(parts)
    )


def _rates(result: Flinch) -> list[str]:
    width = max(len(name) for name in result.names) + len(_FRAMINGS["system"])
    lines = []
    for kind in KINDS:
        rows: list[tuple[str, Behaviour]] = [
            (f"{name}{_FRAMINGS[framing]}", behaviour)
            for name, by in result.behaviours.items()
            for framing, behaviour in by.items()
            if behaviour.of(kind)
        ]
        if not rows:
            continue
        lines.append(
            f"{_TITLES[kind] + f' ({rows[0][1].rate(kind).n})':<{width}}"
            "  refused    95 % of it  full  partly  broken"
        )
        for name, behaviour in rows:
            rate = behaviour.rate(kind)
            low, high = rate.interval
            full, partial = behaviour.rate(kind, "full"), behaviour.rate(kind, "partial")
            broken = behaviour.rate(kind, "incoherent")
            lines.append(
                f"{name:<{width}}  {rate.value:7.1%}  {low:5.1%}-{high:6.1%}  {full.value:4.0%}"
                f"  {partial.value:6.0%}  {broken.value:6.0%}"
            )
    return lines


def _comparison(result: Flinch, name: str) -> list[str]:
    lines = []
    for framing in result.behaviours[name]:
        found = result.comparison(name, framing)
        against = f"{name} against {found['against']}{_FRAMINGS[framing]}"
        for kind in KINDS:
            if kind not in found:
                continue
            k = found[kind]
            lines.append(
                f"{against}: {_TITLES[kind]} {k['points']:+.1f} points "
                f"({k['stopped']} stopped, {k['started']} started; p {k['p_holm']:.2g})"
            )
    return lines

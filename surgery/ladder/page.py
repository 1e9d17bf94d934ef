"""The ladder as one self-contained page: no scripts, no fonts, nothing fetched."""

from __future__ import annotations

from html import escape

from surgery.ladder.picture import picture
from surgery.ladder.result import ItemResult, Ladder, RungResult
from surgery.ladder.table import recovered, state

_HEADS = {
    "hidden": "Hidden, not gone",
    "gone": "Gone, as far as these rungs reach",
    "unchanged": "Not changed",
    "unclear": "Unclear",
    "untold": "Nothing can be said",
}
_TONES = {"hidden": "bad", "gone": "good", "unchanged": "bad"}
_CELLS = {"back": "the old answer is back", "held": "it is not back", "untold": "does not tell"}

_STYLE = """
:root{--paper:#f4f6f8;--sheet:#fff;--ink:#17212b;--soft:#5a6875;--rule:#d9e0e6;--base:#7b8894;
--edited:#1f5fbf;--control:#b9882d;--good:#1d7a52;--warn:#9a6200;--bad:#b3322a}
@media (prefers-color-scheme:dark){:root{--paper:#10161c;--sheet:#182028;--ink:#e3eaf0;--soft:#97a6b3;
--rule:#2c3944;--base:#8b9aa7;--edited:#73a9f5;--control:#d9ab55;--good:#5cc794;--warn:#e2ae55;
--bad:#f0877d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 "Avenir Next","Segoe UI","Helvetica Neue","Noto Sans",system-ui,sans-serif}
main{max-width:940px;margin:0 auto;padding:32px 20px 80px}
h1{font-size:clamp(1.8rem,5vw,2.8rem);line-height:1.1;margin:0 0 10px;color:var(--tone)}
h2{font-size:1.2rem;margin:36px 0 6px}p{margin:0 0 12px;max-width:70ch}.soft{color:var(--soft)}
.verdict{border-left:10px solid var(--tone);padding:6px 0 6px 24px;margin-bottom:28px}
.verdict.good{--tone:var(--good)}.verdict.bad{--tone:var(--bad)}.verdict.warn{--tone:var(--warn)}
.sheet{background:var(--sheet);border:1px solid var(--rule);border-radius:6px;padding:14px;
overflow-x:auto}
svg{width:100%;min-width:640px;height:auto;display:block}svg text{fill:var(--ink);font-size:13px}
svg text.soft{fill:var(--soft);font-size:12px}.grid{stroke:var(--rule)}
g line{stroke-width:2}.base line{stroke:var(--base)}.base circle,i.base{fill:var(--base)}
.edited line{stroke:var(--edited)}.edited circle{fill:var(--edited)}
.control line{stroke:var(--control)}.control circle{fill:var(--control)}
svg text.back,svg text.partly{fill:var(--bad)}svg text.held{fill:var(--good)}
svg text.unclear,svg text.silent,svg text.skipped{fill:var(--soft)}
.key{max-width:none}.key span{margin-right:1.4em}
.key i{display:inline-block;width:.7em;height:.7em;border-radius:50%;
margin-right:.4em}
table{border-collapse:collapse;width:100%;min-width:760px;font-size:.9rem}
td,th{padding:5px 9px;border-top:1px solid var(--rule);text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}tr:first-child th{border-top:0}
.cells{white-space:nowrap}.cells b{display:inline-block;width:.8em;height:1.1em;margin-right:2px;
border-radius:2px;border:1px solid var(--rule);vertical-align:middle}
.cells b.back{background:var(--bad);border-color:var(--bad)}
.cells b.held{border:2px solid var(--good)}.cells b.untold{border-color:transparent}
"""


def page(found: Ladder) -> str:
    """Verdict, picture, rungs, items, and how to read them."""
    tone = _TONES.get(found.word, "warn")
    head = _HEADS[found.word]
    key = "".join(
        f'<span><i style="background:var(--{side})"></i>{name}</span>'
        for side, name in (
            ("base", "before the edit"),
            ("edited", "after the edit"),
            ("control", "never knew: after the edit, asked about made-up subjects"),
        )
    )
    rungs = "".join(_rung_row(rung, found.entry) for rung in found.rungs)
    names = [rung.name for rung in found.rungs]
    items = "".join(_item_row(item, names) for item in found.items)
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Ladder: {escape(head)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>
<body><main>
<div class="verdict {tone}"><h1>{head}</h1>{_summary(found)}
<p class="soft">{escape(found.edited)} against {escape(found.base)}</p></div>
<p>Each rung asks for the old answers in a more forceful way. A dot is the share of facts for which
the model prefers the old answer to the new one, to others of its kind, and to whatever it says instead
now; the bar is the 95 % interval. An answer has come back if the edited model shows more of it than it
does for made-up subjects, which nobody can have known.</p>
<div class="sheet"><p class="key">{key}</p>{picture(found)}</div>
<h2>Rung by rung</h2><div class="sheet"><table><tr><th>rung</th><th class="n">facts</th>
<th class="n">before</th><th class="n">after</th><th class="n">never knew</th>
<th class="n">recovered [95 %]</th><th></th></tr>{rungs}</table></div>
<h2>Fact by fact</h2><p class="soft">One box a rung, in the order above: full, the old answer is back;
hollow, it is not; none, the rung does not tell.</p>
<div class="sheet"><table><tr><th>fact</th><th>old answer</th><th>says now</th><th>rungs</th>
<th>held to</th><th>back at</th><th class="n">recovered</th></tr>{items}</table></div>
{f"<h2>Notes</h2><ul>{notes}</ul>" if notes else ""}
</main></body></html>
"""


def _summary(found: Ladder) -> str:
    parts = [f"<p>{escape(found.reason[0].upper() + found.reason[1:])}.</p>"]
    labels = {rung.name: rung.label for rung in found.rungs}
    if found.deepest:
        back = f", and gives way at “{labels[found.returns_at]}”" if found.returns_at else ""
        parts.append(f"<p>{escape(f'The edit holds up to “{labels[found.deepest]}”{back}.')}</p>")
    overall = found.overall
    if overall and overall.recovered is not None and overall.recovered_interval:
        low, high = overall.recovered_interval
        share = f"{overall.recovered:.0%}" if overall.recovered > 0 else "none"
        entry = f"Asked with {labels[found.entry]}, " if found.entry else ""
        parts.append(
            f"<p>{escape(entry)}{found.taken} of {len(found.items)} old answers are no longer given. "
            f"Over the {overall.rungs} other rungs that tell, {share} of what the model knew of them "
            f"comes back (95 % interval: {max(0.0, low):.0%} to {min(1.0, high):.0%}), beyond what it "
            "says of made-up subjects.</p>"
        )
    return "".join(parts)


def _rung_row(rung: RungResult, entry: str | None) -> str:
    def share(side: str) -> str:
        found = getattr(rung, side)
        return "" if found is None else f"{found.share:.0%}"

    ranks = ""
    if rung.ranks:
        names = {"base": "before", "edited": "after", "control": "never knew"}
        told = ", ".join(f"{names[side]} {rank:.0f}" for side, rank in rung.ranks.items())
        ranks = f'<br><span class="soft">place among all words, median: {escape(told)}</span>'
    cells = "".join(f'<td class="n">{share(side)}</td>' for side in ("base", "edited", "control"))
    return (
        f'<tr><td>{escape(rung.label)}{ranks}</td><td class="n">{rung.n}</td>{cells}'
        f'<td class="n">{recovered(rung)}</td><td>{state(rung, entry)}</td></tr>'
    )


def _item_row(item: ItemResult, names: list[str]) -> str:
    boxes = "".join(
        f'<b class="{item.rungs[name]}" title="{name}: {_CELLS[item.rungs[name]]}"></b>'
        for name in names
    )
    share = "" if item.share is None else f"{item.share:.0%}"
    held = (item.deepest or "none") if item.taken else "not changed"
    return (
        f"<tr><td>{escape(item.prompt)}</td><td>{escape(item.old)}</td>"
        f'<td class="soft">{escape(_short(item.said_after))}</td><td class="cells">{boxes}</td>'
        f"<td>{escape(held)}</td><td>{escape(item.returns_at or '')}</td>"
        f'<td class="n">{share}</td></tr>'
    )


def _short(said: str, most: int = 40) -> str:
    """The first line, cut at a word."""
    line = said.splitlines()[0] if said else ""
    return line if len(line) <= most else line[:most].rsplit(" ", 1)[0] + " …"

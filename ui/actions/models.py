"""Several checkpoints on the same questions: answers, a debate, a cross-check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from surgery.errors import SurgeryError
from ui.actions import checkpoints, commands
from ui.highlight import marked
from ui.markup import Raw, esc, notices, table
from ui.session import Bench

# The two sides that are in memory; everything else is a folder.
BASE, STACK = "In memory, without edits", "In memory, as the stack says"
MOST = 4


def choices() -> list[str]:
    return [BASE, STACK, *checkpoints.known()]


def side(bench: Bench, choice: str) -> Any:
    """A side for `surgery.compare`: the model in memory in one of its states, or a folder."""
    from surgery.compare import Side

    if choice == BASE:
        return Side(f"{bench.name} (base)", bench.model)
    if choice == STACK:
        return Side(f"{bench.name} (edited)", bench.model, tuple(bench.here))
    return Side.of(str(checkpoints.clean(choice)))


def sides(bench: Bench, chosen: Sequence[str], least: int = 2) -> list[Any]:
    if not least <= len(chosen) <= MOST:
        raise SurgeryError(f"choose {least} to {MOST} models to compare, not {len(chosen)}")
    return [side(bench, choice) for choice in chosen]


def as_argument(bench: Bench, choice: str) -> str:
    """How a side is named on the command line: a folder, or a folder with deltas on it."""
    if choice == STACK:
        return commands.edited(bench)
    return str(bench.path) if choice == BASE else choice


# ---------------------------------------------------------------------- answers
def answers(
    bench: Bench, chosen: Sequence[str], prompts: Sequence[str], tokens: int, chat: bool
) -> Callable[[], str]:
    """The work of asking every side the same things."""

    def work() -> str:
        from surgery.compare import answers as ask

        with bench.lock:
            found = ask(sides(bench, chosen), list(prompts), max_new_tokens=tokens, chat=chat)
        agree = sum(row.agree for row in found.rows)
        counts = " · ".join(
            f"{esc(name)}: {n}" for name, n in zip(found.sides, found.refusals, strict=True)
        )
        rounds = []
        for row in found.changed_first:
            texts = [marked(row.answers[0], text)[1] for text in row.answers]
            texts[0] = Raw(esc(row.answers[0]))
            rounds.append(_round(row.prompt, found.sides, texts, row.refused, row.agreement))
        return (
            f'<p class="finding">{agree} of {len(found.rows)} answers agree. Refusals: {counts}</p>'
            f'<div class="talk">{"".join(rounds)}</div>'
        )

    return work


def _round(
    prompt: str, names: Sequence[str], texts: Sequence[Raw], refused: Sequence[bool], share: float
) -> str:
    css = {3: " three", 4: " four"}.get(len(names), "")
    cells = "".join(
        f'<section class="side"><header><h3>{esc(name)}</h3>'
        f'{"<span>refuses</span>" if no else ""}</header><div class="said">{text}</div></section>'
        for name, text, no in zip(names, texts, refused, strict=True)
    )
    return (
        f'<div class="round"><p class="message">{esc(prompt)} <em>{share:.0%} of words in common</em></p>'
        f'<div class="pair{css}">{cells}</div></div>'
    )


# ---------------------------------------------------------------------- debate
def debate(
    bench: Bench, one: str, other: str, question: str, rule: str, turns: int, seed: int
) -> Callable[[], str]:
    """The work of a debate between two sides."""

    def work() -> str:
        from surgery.compare import debate as argue

        with bench.lock:
            found = argue(
                side(bench, one), side(bench, other), question, rule=rule, turns=turns, seed=seed
            )
        said = []
        for turn in found.turns:
            gone = [i for i in (0, 1) if found.gave_way[i] == turn.number]
            flags = "".join(
                f'<p class="gave">{esc(found.sides[i])} gives up its position here</p>'
                for i in gone
            )
            held = " ".join(
                f'<span>{esc(found.sides[i])} <span class="bar now"><i style="width:'
                f'{100 * turn.held[i]:.0f}%"></i></span></span>'
                for i in (0, 1)
            )
            said.append(
                f'<li class="by{turn.speaker}"><header>{turn.number} · {esc(found.sides[turn.speaker])}'
                f'</header><div class="said">{esc(turn.text)}</div><footer>holds its position: {held}'
                f"</footer>{flags}</li>"
            )
        first = "".join(
            f'<section class="side"><header><h3>{esc(name)}</h3><span>position</span></header>'
            f'<div class="said">{esc(position)}</div></section>'
            for name, position in zip(found.sides, found.positions, strict=True)
        )
        return (
            f'<p class="finding">{esc(found.outcome)}</p><div class="pair">{first}</div>'
            f'<ol class="debate">{"".join(said)}</ol>{notices(found.notes)}'
        )

    return work


# ---------------------------------------------------------------------- cross-check
def crosscheck(
    bench: Bench, one: str, other: str, prompts: Sequence[str], tokens: int = 40
) -> Callable[[], str]:
    """The work of letting each side judge what the other says."""

    def work() -> str:
        from surgery.compare import crosscheck as judge

        with bench.lock:
            both = [
                judge(side(bench, a), side(bench, b), list(prompts), max_new_tokens=tokens)
                for a, b in ((one, other), (other, one))
            ]
        return "".join(_checked(found) for found in both)

    return work


def _checked(found: Any) -> str:
    order = sorted(
        found.statements, key=lambda s: (not s.denied, s.held if s.held is not None else 1.0)
    )
    rows = [
        (
            s.prompt,
            Raw(f'<span class="said">{esc(s.text)}</span>'),
            Raw(f'<span class="said">{esc(s.by_own)}</span>'),
            "refused" if s.refused else ("–" if s.held is None else f"{s.held:.0%}"),
            Raw(f"<mark>denied: {esc(s.word)}</mark>") if s.denied else "",
        )
        for s in order
    ]
    count = len(found.denied)
    return (
        f'<div class="part"><h2>{esc(found.judge)} reads {esc(found.speaker)}</h2>'
        f"<p>{count} of {len(rows)} statements are asserted by the one and denied by the other.</p></div>"
        + table(["Asked", "Says", "The reader says", "Held true", ""], rows, "tttnt")
        + notices(found.notes)
    )

"""Looking inside: where a fact is read, what each layer would say, how far a direction reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from ui.actions.answers import framed
from ui.actions.heat import heat_map
from ui.actions.specs import prompts as read_field
from ui.actions.tokens import shown
from ui.markup import Raw, bar, esc, notices, percent, state_line, table
from ui.session import Bench

SAMPLES = 6
KINDS = {
    "mlp": ("MLP outputs", "restored in the noised run: where facts are recalled"),
    "attention": ("Attention outputs", "restored: where they are read out"),
    "stream": ("Whole stream", "restored: everything known at that point"),
}


def trace(bench: Bench, prompt: str, subject: str, answer: str = "") -> Callable[[], str]:
    """The work of a causal trace, as a picture on which layers can be clicked."""

    def work() -> str:
        from surgery.trace import causal_trace

        if not prompt.strip() or not subject.strip():
            raise SurgeryError("a trace needs a prompt and the subject that stands in it")
        found = causal_trace(
            bench.model, prompt, subject, samples=SAMPLES, answer=answer.strip() or None
        )
        marked = range(found.subject[0], found.subject[1] + 1)
        maps = "".join(
            heat_map(found.effects[kind], found.tokens, *KINDS[kind], marked, found.layer)
            for kind in ("mlp", "attention", "stream")
            if kind in found.effects
        )
        said = (
            f'<p class="finding">With the subject hidden in noise, “{esc(found.answer)}” falls from '
            f"{percent(found.base)} to {percent(found.corrupted)}. At the subject’s last token, putting "
            f'back the MLP output of <button class="inline" data-do="layer" data-layer="{found.layer}">'
            f"layer {found.layer}</button> helps most. "
            "Click a layer to put it into the edit form.</p>"
        )
        return (
            state_line(bench.state, "Traced in", bench.stamp) + said + maps + notices(found.notes)
        )

    return work


def lens(bench: Bench, prompt: str, answers: str = "") -> Callable[[], str]:
    """The work of a logit lens: what every layer would say next, at every token."""

    def work() -> str:
        from surgery.trace import logit_lens

        if not prompt.strip():
            raise SurgeryError("write a prompt first")
        wanted = [one.strip() for one in answers.split(",") if one.strip()]
        found = logit_lens(bench.model, prompt, k=1, answers=wanted)
        top = [[words[0] for words in layer] for layer in found.top]
        shades = [[float(p[0]) for p in layer] for layer in found.top_probability]
        picture = heat_map(
            shades,
            found.tokens,
            "Logit lens",
            "the next token each layer would say if it were the last; the surer, the darker",
            best=None,
            texts=[[shown(word)[:9] for word in row] for row in top],
        )
        followed = "".join(
            heat_map(values, found.tokens, f"“{name}”", "its probability at every layer")
            for name, values in found.answers.items()
        )
        return state_line(bench.state, "Read in", bench.stamp) + picture + followed

    return work


def candidates(bench: Bench, prompt: str, chat: bool = False, top: int = 10) -> str:
    """The likeliest next tokens of the model as it is."""
    from surgery.trace import next_tokens

    if not prompt.strip():
        raise SurgeryError("write a prompt first")
    rows = next_tokens(bench.model, framed(bench, prompt, chat), top)
    return state_line(bench.state, "Read in", bench.stamp) + table(
        ["Next token", "Probability", ""],
        [
            (
                Raw(f"<code>{esc(shown(row.token))}</code>"),
                percent(row.probability),
                bar(row.probability, "now"),
            )
            for row in rows
        ],
        "mnt",
        "next",
    )


def project(
    bench: Bench, prompt: str, file: str = "", positive: str = "", negative: str = ""
) -> Callable[[], str]:
    """The work of projecting a prompt on a direction: a saved one, or one found from two prompt sets."""

    def work() -> str:
        from surgery.directions import Direction, difference_of_means
        from surgery.spec import read_prompts
        from surgery.trace import projection

        if not prompt.strip():
            raise SurgeryError("write a prompt first")
        sets = read_field(positive), read_field(negative)
        if file.strip():
            direction = Direction.load(Path(file.strip()).expanduser())
        elif sets[0] and sets[1]:
            direction = difference_of_means(
                bench.model, read_prompts(sets[0]), read_prompts(sets[1])
            )
        else:
            raise SurgeryError(
                "give a direction file, or prompts that show the behaviour and that do not"
            )
        found = projection(bench.model, prompt, direction)
        middle = (found.positive + found.negative) / 2
        picture = heat_map(
            found.values - middle,
            found.tokens,
            "Along the direction",
            f"read at layer {found.layer}; zero is half way between the two sets",
            best=found.layer,
            pick=False,
        )
        last = float(found.values[found.layer, -1])
        gap = found.positive - found.negative
        side = (last - found.negative) / gap if gap else 0.5
        said = (
            f'<p class="finding">At layer {found.layer} the prompt’s last token lies {side:.0%} of the '
            "way from prompts without the behaviour to prompts that show it.</p>"
        )
        return state_line(bench.state, "Read in", bench.stamp) + said + picture

    return work


def picked(values: dict[str, Any], prompt: str, subject: str, layer: int) -> dict[str, Any]:
    """The edit form's values with a traced layer in them, and the fact that was traced."""
    text, name = prompt.strip(), subject.strip()
    template = text.replace(name, "{}") if name and text.count(name) == 1 else text
    filled = dict(values, layers=str(layer))
    if template and name:
        filled |= {"prompt": template, "subject": name}
    return filled

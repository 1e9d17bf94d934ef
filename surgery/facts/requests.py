"""The facts of a part of a spec, made ready to solve: read, checked, put into contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surgery.errors import SurgeryError
from surgery.facts.rows import Row, elsewhere_rows, essence_row, rewriting_rows, sample_prefixes
from surgery.model import Model
from surgery.spec import Fact, FactPart, conflicts, read_facts
from surgery.stack.memory import bare


@dataclass(frozen=True)
class Request:
    """One fact in all its contexts (the bare prompt first), its essence row, and its subject elsewhere."""

    fact: Fact
    rewriting: list[Row]
    essence: Row
    elsewhere: list[Row]


@dataclass(frozen=True)
class Requests:
    """The facts of a part, the prefixes they share, and what to tell the user about them."""

    items: list[Request]
    prefixes: Sequence[str]
    warnings: list[str]

    @property
    def facts(self) -> list[Fact]:
        return [item.fact for item in self.items]

    @property
    def contexts(self) -> int:
        return len(self.prefixes) + 1


def request(model: Model, fact: Fact, prefixes: Sequence[str]) -> Request:
    return Request(
        fact,
        rewriting_rows(model, fact, prefixes),
        essence_row(model, fact),
        elsewhere_rows(model, fact),
    )


def load_facts(source: list[Fact] | str) -> list[Fact]:
    """The facts of a part.

    Raises:
        SurgeryError: none, unreadable, or two of them ask for different answers to one question.
    """
    facts = read_facts(source) if isinstance(source, str) else source
    if not facts:
        raise SurgeryError("the list of facts is empty")
    clashes = conflicts(facts)
    if clashes:
        one, other = clashes[0]
        more = f" (and {len(clashes) - 1} more such pairs)" if len(clashes) > 1 else ""
        raise SurgeryError(
            f"conflicting facts: {one.text!r} is to become {one.target!r} and "
            f"{other.target!r}{more}: keep one of them"
        )
    return facts


def prepare(part: FactPart, model: Model, seed: int) -> Requests:
    """Rows for every fact of a part. Prefixes are sampled once, from the model without edits.

    A fact that cannot be put into tokens is left out with a warning that names it; one bad line does
    not cost a batch.

    Raises:
        SurgeryError: no fact is left, or what `load_facts` says.
    """
    facts = load_facts(part.facts)
    if part.prefixes is not None:
        prefixes = list(part.prefixes)
    else:
        with bare(model):
            prefixes = sample_prefixes(model, part.contexts, seed)
    items: list[Request] = []
    refused: list[str] = []
    for fact in facts:
        try:
            items.append(request(model, fact, prefixes))
        except SurgeryError as error:
            refused.append(f"left out: {error}")
    if not items:
        raise SurgeryError(refused[0].removeprefix("left out: "))
    return Requests(items, prefixes, refused + _warnings(items))


def _warnings(items: Sequence[Request]) -> list[str]:
    first = [item.fact.subject for item in items if item.rewriting[0].subject == 0]
    if not first:
        return []
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return [
        f"the subject is the very first token for {', '.join(first[:3])}{more}: such keys are unlike "
        "all others, and the edit may not show when text stands before the prompt"
    ]

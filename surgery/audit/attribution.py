"""Who did it: which edit of a stack is behind the damage.

Leaving out one edit at a time says what each adds on top of the others. Bisection finds the edit after
which one item was wrong, in log2(n) looks instead of n.

The base is measured once (and kept, as in every audit), the whole stack once. Without each edit only
the texts are read again, and only the items asked that the stack turned: the others say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.audit.asked import answers, ask_facts, declared, expected, find, items_of, only, short
from surgery.audit.cache import SideCache
from surgery.audit.general import divergences, perplexity
from surgery.audit.head import Head, changes_head
from surgery.audit.measure import Measured, Plan, measure
from surgery.audit.report import finite
from surgery.audit.suite import Suite
from surgery.audit.tasks import Outcome
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.progress import track
from surgery.stack import Lineage, bare, set_edits, stack

# Generating is slow, and refusals are no matter of one edit's rows: only bisection asks for those.
_SLOW = "requests"


@dataclass(frozen=True)
class Share:
    """What one edit adds: damage of the whole stack minus damage without it.

    place: its number in the stack, from 1. kl: mean KL(base || edited) in nats a token; `kl_without`
    is what is left without it. perplexity: in units of it. lost: items right before and wrong now that
    are right without it, their ids in `items`; `won` those wrong before and right now that are wrong
    without it.
    """

    edit: str
    name: str
    place: int
    kl: float
    kl_without: float
    perplexity: float
    lost: int
    won: int
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """An item the stack turned from right to wrong. edits: places of the edits without any one of
    which it is right; none means that it takes leaving out several."""

    id: str
    text: str
    gold: str
    answer: str
    edits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Attribution:
    """The damage of a stack, and what each edit adds to it, the most first."""

    kl: float
    perplexity_base: float
    perplexity: float
    shares: list[Share]
    failed: list[Failed]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        from dataclasses import asdict

        return finite(asdict(self))


@dataclass(frozen=True)
class Culprit:
    """The edit after which an item was wrong. before, after: answers on both sides of it.
    mended: whether the item is right again in the whole stack without this edit."""

    item: str
    text: str
    edit: str
    name: str
    place: int
    before: str
    after: str
    mended: bool


# ---------------------------------------------------------------------- leaving one out
def attribute(
    model: Model,
    deltas: Sequence[Delta] | None = None,
    suite: str | Suite = "quick",
    cache: bool = True,
    force: bool = False,
) -> Attribution:
    """Measure a stack without each of its edits in turn.

    deltas: the stack, oldest first; None for what is in the model (of its folder and in memory). The
    model is as it was afterwards. An edit that was solved on top of another one is measured without
    it all the same: the question is what the weights do.

    Raises:
        SurgeryError: no edits, or edits that do not go together (`force` accepts another base).
    """
    deltas = _given(model, deltas)
    with bare(model):
        try:
            return _attribute(model, deltas, _loaded(suite), cache, force)
        finally:
            set_edits(model, [], force=True)


def leave_one_out(
    model: Model, deltas: Sequence[Delta] | None = None, suite: str | Suite = "quick"
) -> list[Share]:
    """The shares alone; see `attribute`."""
    return attribute(model, deltas, suite).shares


def _attribute(
    model: Model, deltas: Sequence[Delta], suite: Suite, cache: bool, force: bool
) -> Attribution:
    store = SideCache(model, cache)
    plan = Plan.of(suite, model)
    plan.tasks = [task for task in plan.tasks if task.part.kind != _SLOW]
    owners = ask_facts(plan, model, deltas, store)
    left_out = declared(plan.tasks, plan.facts)
    items = {i: asked for i, asked in items_of(plan, owners).items() if asked.item not in left_out}
    head = Head.of(model, copy=any(changes_head(model, delta.tensors) for delta in deltas))
    base = measure(model, plan, "base", store, head=head)
    before = answers(plan, base.tasks, base.facts)

    set_edits(model, deltas, force=force)
    notes = _stray(model, deltas)
    nothing = SideCache(model, use=False)
    whole = measure(model, plan, "all edits", nothing, speak=False)
    now = answers(plan, whole.tasks, whole.facts)
    kl, size_base, size = _gap(plan, base, whole)
    turned = {i for i in items if expected(items[i], before[i]) != now[i].right}
    less = only(plan, turned)

    shares: list[Share] = []
    mending: dict[str, list[int]] = {}
    for index, delta in enumerate(track(deltas, "leaving one out", total=len(deltas))):
        rest = [*deltas[:index], *deltas[index + 1 :]]
        if rest:
            set_edits(model, rest, force=True)
            without = measure(model, less, f"without {delta.name}", nothing, speak=False)
            right = answers(less, without.tasks, without.facts)
        else:
            without, right = base, before
        # What an edit set itself cannot hold without it, and says nothing.
        asked = [i for i in items if i in turned and items[i].since != index + 1]
        lost = tuple(i for i in asked if right[i].right and not now[i].right)
        for item in lost:
            mending.setdefault(item, []).append(index + 1)
        left, _, size_left = _gap(plan, base, without)
        shares.append(
            Share(
                edit=delta.id,
                name=delta.name,
                place=index + 1,
                kl=_more(kl, left),
                kl_without=left,
                perplexity=_more(size, size_left),
                lost=len(lost),
                won=sum(now[i].right and not right[i].right for i in asked),
                items=lost,
            )
        )
    return Attribution(
        kl=kl,
        perplexity_base=size_base,
        perplexity=size,
        # By what is left, which is a number even where all edits together give none.
        shares=sorted(shares, key=lambda s: (not math.isfinite(s.kl_without), s.kl_without)),
        failed=[
            Failed(i, items[i].text, items[i].gold, now[i].answer, tuple(mending.get(i, ())))
            for i in items
            if i in turned and not now[i].right
        ],
        notes=notes,
    )


def _gap(plan: Plan, base: Measured, side: Measured) -> tuple[float, float, float]:
    """Mean KL of a side against the base in nats a token, and the perplexity of both."""
    sides = [(side.states, side.head)]
    nll, [gap] = divergences(plan.texts, base.states, base.head, sides)
    return float(gap.kl.double().mean()), perplexity(nll), perplexity(gap.nll)


def _more(whole: float, without: float) -> float:
    """The difference; infinite where only the whole has no number."""
    return math.inf if not math.isfinite(whole) and math.isfinite(without) else whole - without


# ---------------------------------------------------------------------- bisection
def bisect(
    model: Model, deltas: Sequence[Delta], right: Callable[[Model], bool], since: int = 0
) -> tuple[int, Delta]:
    """The first edit (its index, and itself) after which `right(model)` no longer holds.

    Halves the stack each time, which finds one place where right turns to wrong; where it turns
    several times, it is one of them. since: with how many edits it must hold at first.

    Raises:
        SurgeryError: it does not hold at first, or holds with all of the edits.
    """

    def holds(count: int) -> bool:
        set_edits(model, deltas[:count], force=True)
        return right(model)

    with bare(model):
        try:
            if not holds(since):
                when = f"right after {deltas[since - 1].name}" if since else "before any edit"
                raise SurgeryError(f"it is wrong {when}: no edit is to blame")
            if holds(len(deltas)):
                raise SurgeryError("it is right with all edits: nothing broke it")
            good, bad = since, len(deltas)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if holds(middle) else (good, middle)
        finally:
            set_edits(model, [], force=True)
    return bad - 1, deltas[bad - 1]


def who_broke(
    model: Model,
    item: str,
    deltas: Sequence[Delta] | None = None,
    suite: str | Suite = "quick",
    answer: str | None = None,
) -> Culprit:
    """Find the edit of a stack that broke an item.

    item: the id of an item of the suite or of an edit's own facts (as `attribute` and reports give
    them), a part of its text, or any other prompt. A prompt of your own is right when what
    greedy decoding gives begins with `answer`, by default with what the base says.

    Raises:
        SurgeryError: no edits, no or several such items, or one that no edit broke.
    """
    deltas = _given(model, deltas)
    with bare(model):
        asked, ask = find(model, item, deltas, _loaded(suite), answer)

    def right(edited: Model) -> bool:
        return ask(edited).right

    try:
        index, delta = bisect(model, deltas, right, asked.since)
    except SurgeryError as error:
        raise SurgeryError(f"{asked.id} ({short(asked.text)}): {error}") from None
    with bare(model):
        try:
            said: list[Outcome] = []
            rest = [*deltas[:index], *deltas[index + 1 :]]
            for edits in (deltas[:index], deltas[: index + 1], rest):
                set_edits(model, edits, force=True)
                said.append(ask(model))
        finally:
            set_edits(model, [], force=True)
    before, after, without = said
    return Culprit(
        asked.id, asked.text, delta.id, delta.name, index + 1, before.answer, after.answer,
        mended=without.right,
    )  # fmt: skip


# ---------------------------------------------------------------------- the stack
def _given(model: Model, deltas: Sequence[Delta] | None) -> list[Delta]:
    found = stack(model) if deltas is None else list(deltas)
    if not found:
        raise SurgeryError(f"{model.checkpoint.path} has no edits to choose from")
    return found


def _loaded(suite: str | Suite) -> Suite:
    return suite if isinstance(suite, Suite) else Suite.load(suite)


def _stray(model: Model, deltas: Sequence[Delta]) -> list[str]:
    """Whether the folder's own tensors are what its base and edits make them. The stack is on."""
    if [delta.id for delta in deltas] != Lineage.of(model.checkpoint).ids:
        return []
    keys = sorted({key for delta in deltas for key in delta.tensors})
    stray = [
        key
        for key in keys
        if key in model.originals
        and not torch.allclose(
            model.originals[key], model.parameter(key), rtol=0, atol=0, equal_nan=True
        )
    ]
    return [
        f"{key} of {model.checkpoint.path.name} is not what its record says: what else was done to it "
        "is no edit's damage, and is left out here"
        for key in stray
    ]

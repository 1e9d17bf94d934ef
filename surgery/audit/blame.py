"""Who did it: which edit of a stack is behind a damage.

Leaving out one edit at a time says what each contributes on top of the others. Bisection finds the
edit after which one thing was wrong, in log2(n) looks instead of n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from surgery.audit.general import divergence, perplexity, text_states
from surgery.audit.head import Head
from surgery.audit.measure import Plan
from surgery.audit.suite import Suite
from surgery.audit.tasks import run_tasks
from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.progress import track
from surgery.stack import bare, set_edits


@dataclass(frozen=True)
class Share:
    """Damage of the whole stack minus damage without this edit: what this one adds.

    kl: mean KL in nats. perplexity: in units of it. lost: task items that are right without the edit
    and wrong with it; `won` the other way round.
    """

    edit: str
    name: str
    kl: float
    perplexity: float
    lost: int
    won: int


def leave_one_out(
    model: Model, deltas: Sequence[Delta], suite: str | Suite = "quick"
) -> list[Share]:
    """Measure the stack without each of its edits in turn; the largest contribution to KL first.

    The model's own in-memory edits are put aside meanwhile. An edit that was solved on top of another
    one is measured without it all the same: the question is what the weights do.
    """
    if not deltas:
        raise SurgeryError("no edits to choose from")
    plan = Plan.of(suite if isinstance(suite, Suite) else Suite.load(suite), model)
    tasks = [task for task in plan.tasks if task.part.kind != "requests"]

    def look(stack: Sequence[Delta]) -> tuple[float, float, list[bool]]:
        set_edits(model, stack, force=True)
        states = text_states(model, plan.texts)
        gap = divergence(base, base_head, states, Head.of(model))
        right = [o.right for found in run_tasks(model, tasks).values() for o in found]
        return float(gap.kl.double().mean()), perplexity(states.nll), right

    with bare(model):
        try:
            base, base_head = text_states(model, plan.texts), Head.of(model, copy=True)
            kl, size, right = look(deltas)
            found = []
            for index, delta in enumerate(track(deltas, "leaving one out", total=len(deltas))):
                rest = [*deltas[:index], *deltas[index + 1 :]]
                kl_without, size_without, right_without = look(rest)
                pairs = list(zip(right_without, right, strict=True))
                found.append(
                    Share(
                        edit=delta.id,
                        name=delta.name,
                        kl=kl - kl_without,
                        perplexity=size - size_without,
                        lost=sum(without and not now for without, now in pairs),
                        won=sum(now and not without for without, now in pairs),
                    )
                )
        finally:
            set_edits(model, [], force=True)
    return sorted(found, key=lambda share: -share.kl)


def bisect(
    model: Model, deltas: Sequence[Delta], right: Callable[[Model], bool]
) -> tuple[int, Delta]:
    """The first edit (its place, and itself) after which `right(model)` no longer holds.

    Halves the stack each time, which finds one place where right turns to wrong; where it turns
    several times, it is one of them.

    Raises:
        SurgeryError: it does not hold on the base, or holds with all of the edits.
    """

    def holds(count: int) -> bool:
        set_edits(model, deltas[:count], force=True)
        return right(model)

    with bare(model):
        try:
            if not holds(0):
                raise SurgeryError("it is wrong before any edit: no edit is to blame")
            if holds(len(deltas)):
                raise SurgeryError("it is right with all edits: nothing broke it")
            good, bad = 0, len(deltas)
            while bad - good > 1:
                middle = (good + bad) // 2
                good, bad = (middle, bad) if holds(middle) else (good, middle)
        finally:
            set_edits(model, [], force=True)
    return bad - 1, deltas[bad - 1]

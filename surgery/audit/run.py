"""`audit`: base against edited, with controls, a verdict and a report."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from surgery.audit import facts as fact_metrics
from surgery.audit.about import (
    answers,
    contrast,
    facts_before,
    facts_of,
    left_out_note,
    limits_of,
    spec_of,
    to_speak,
)
from surgery.audit.asked import declared
from surgery.audit.cache import SideCache, Unfinished
from surgery.audit.controls import sham as make_sham
from surgery.audit.environment import environment
from surgery.audit.figures import layer_ratios, task_figures, text_figures, text_kinds
from surgery.audit.freetext import free_text_figures, surprise
from surgery.audit.general import (
    divergences,
    first_batch,
    norm_ratios,
    perplexity,
    text_states,
)
from surgery.audit.head import Head
from surgery.audit.measure import (
    Measured,
    Plan,
    measure,
    score_facts,
    speak_after,
    texts_again,
)
from surgery.audit.reload import reloaded
from surgery.audit.report import FactRecord, Figure, Report, Verdict
from surgery.audit.sides import Edited, Sides
from surgery.audit.suite import Suite
from surgery.audit.tasks import compare
from surgery.audit.verdict import check_limits, decide, unenforced
from surgery.audit.weights import weight_changes
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.spec import EditSpec


def audit(
    base: str | Path | Model,
    edited: Edited,
    spec: EditSpec | str | Path | None = None,
    suite: str | Path | Suite = "quick",
    model: Model | None = None,
    prompts: Sequence[str] | None = None,
    limits: dict[str, float] | None = None,
    cache: bool = True,
    force: bool = False,
) -> Report:
    """Measure what an edit did and what else it broke.

    base: a checkpoint folder or a loaded model. edited: an edited folder, a delta or its file, or
    several deltas in order. spec: where the facts to ask about and the limits come from; default the
    spec inside the deltas. model: the base, if it is loaded already. prompts: more prompts to answer
    before and after. limits: override the spec's and the suite's. cache: keep the base's side, and
    until the report is made everything else, so that an audit which was killed goes on where it was.

    Raises:
        SurgeryError: base and edited cannot be compared, no such suite, an unknown limit.
    """
    started = time.perf_counter()
    spec = EditSpec.load(spec) if isinstance(spec, str | Path) else spec
    suite = suite if isinstance(suite, Suite) else Suite.load(suite)
    check_limits({**suite.limits, **(spec.checks.limits if spec else {}), **(limits or {})})
    clock = _Clock()
    with clock("loading"):
        sides = Sides.of(base, edited, model, force)
        own = {**(spec.checks.limits if spec else limits_of(sides)), **(limits or {})}
        plan = Plan.of(suite, sides.model)
        store = SideCache(sides.model, cache)
    unfinished = Unfinished(cache)
    run = _Run(sides, plan, store, unfinished, clock)
    run.ask_what(spec, prompts or [])
    report = run.measure({**suite.limits, **own})
    report.notes += unenforced(report, own)
    report.spec = spec.compact() if spec else spec_of(sides)
    report.suite, report.suite_id = suite.name, suite.id
    report.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    report.environment = environment(sides.model)
    report.seconds = {**clock.seconds, "total": round(time.perf_counter() - started, 2)}
    unfinished.clear()
    return report


class _Clock:
    """Seconds by section."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)


class _Run:
    """store: of the base. unfinished: of everything else."""

    def __init__(
        self, sides: Sides, plan: Plan, store: SideCache, unfinished: Unfinished, clock: _Clock
    ) -> None:
        self.sides, self.plan, self.store, self.clock = sides, plan, store, clock
        self.unfinished = unfinished

    # ------------------------------------------------------------------ what to ask
    def ask_what(self, spec: EditSpec | None, prompts: Sequence[str]) -> None:
        """Facts of the edit and of earlier ones, prompts to speak after, prompts to answer."""
        plan, sides, part = self.plan, self.sides, self.plan.suite.edit
        with self.clock("base"):
            plan.facts = self._records(facts_of(spec, sides)[: part.facts], part.neighbours)
            plan.earlier = self._records(facts_before(sides)[: part.facts], 0)
        for record in plan.earlier:
            record.earlier = True
        plan.speak = to_speak(plan.facts, part.generations)
        plan.answers = [("asked", prompt) for prompt in prompts]
        plan.answers += contrast(spec, sides)
        plan.answers += [("general", prompt) for prompt in plan.suite.answers]

    def _records(self, facts: list[Any], neighbours: int) -> list[FactRecord]:
        return fact_metrics.records(
            facts,
            lambda prompts: speak_after(self.sides.model, prompts, self.store),
            neighbours,
            self.plan.suite.edit.plus,
        )

    # ------------------------------------------------------------------ measuring
    def measure(self, limits: dict[str, float]) -> Report:
        sides, plan, clock = self.sides, self.plan, self.clock
        with clock("weights"):
            meant = set(sides.change) - sides.undeclared
            weights = weight_changes(sides.model.checkpoint, sides.change, meant)
        with clock("base"):
            base = measure(sides.model, plan, "base", self.store, head=sides.head())
        controls: dict[str, Any] = {}
        if plan.suite.controls.identity:
            with clock("identity"):
                controls["identity"] = self._identity(base)
        with clock("edited"), sides.edited() as model:
            head = Head.of(model, copy=sides.base_head is not None)
            edited = measure(model, plan, "edited", self.unfinished.of(model), head=head)
        shams = self._shams(controls)
        sham = shams[0] if shams else None

        for side, scores in (("base", base), ("edited", edited), ("sham", sham)):
            if scores is not None and scores.facts:
                fact_metrics.fill(plan.all_facts, side, scores.facts)
        for record in plan.facts:
            for question in record.questions:
                question.said_before = base.said.get(question.prompt)
                question.said_after = edited.said.get(question.prompt)

        with clock("comparing"):
            sides_read = [(side.states, side.head) for side in (edited, *shams)]
            base_nll, gaps = divergences(plan.texts, base.states, base.head, sides_read)
            left_out = declared(plan.tasks, plan.facts)
            sham_tasks = sham.tasks if sham else None
            tasks = compare(plan.tasks, base.tasks, edited.tasks, sham_tasks, left_out)
            figures = fact_metrics.figures(plan.facts)
            figures += _earlier(plan.earlier)
            ratios = [norm_ratios(base.states, side.states) for side in (edited, *shams)]
            figures += text_figures(plan.texts, base_nll, gaps, ratios)
            figures += task_figures(tasks)
            figures += self._free_text(base, edited)
        if plan.suite.controls.reload:
            with clock("reloads"):
                controls["reload"] = self._reloads(base)
        for figure in figures:
            if figure.sham_change and figure.change is not None:
                figure.multiple = abs(figure.change) / abs(figure.sham_change)
        report = Report(
            suite=plan.suite.name,
            base=sides.base_side,
            edited=sides.edited_side,
            verdict=Verdict(decision="accept", reason=""),
            figures=figures,
            facts=plan.all_facts,
            tasks=tasks,
            texts=text_kinds(plan.texts, base_nll, gaps),
            layers=layer_ratios(ratios),
            weights=weights,
            answers=answers(plan, base, edited),
            controls=controls,
            notes=[*sides.notes, *left_out_note(left_out), *plan.suite.notes()],
        )  # fmt: skip
        report.verdict = decide(report, limits)
        return report

    def _identity(self, base: Measured) -> dict[str, Any]:
        """The edit that changes nothing: what the same computation gives twice.

        One batch of the texts is read again. A cache that was filled under other conditions shows up
        here, and is then made anew.
        """
        plan, model = self.plan, self.sides.model
        chosen = first_batch(plan.texts)
        again = text_states(model, [plan.texts[i] for i in chosen], "identity", nll=False)
        before = base.states.of(plan.texts, chosen)
        if base.cached_states and not torch.equal(again.hidden, before.hidden):
            base.states = texts_again(model, plan, self.store)
            before = base.states.of(plan.texts, chosen)
        texts = [plan.texts[i] for i in chosen]
        _, [gap] = divergences(texts, before, base.head, [(again, base.head)])
        return {
            "kl_mean": float(gap.kl.mean()),
            "kl_max": float(gap.kl.max()),
            "top1_agreement": float(gap.agree.double().mean()),
            "tokens": len(gap.kl),
        }

    def _free_text(self, base: Measured, edited: Measured) -> list[Figure]:
        """Answers that the edit is not about: general prompts and requests."""
        wanted = [prompt for kind, prompt in self.plan.answers if kind == "general"]
        for task in self.plan.tasks:
            if task.part.kind == "requests":
                wanted += [item.prompt for item in task.items]
        before = {prompt: base.answers[prompt] for prompt in wanted}
        after = {prompt: edited.answers[prompt] for prompt in wanted}
        old = {prompt: said.text for prompt, said in before.items()}
        model = self.sides.model
        known = self.store.json("surprise", old, lambda: surprise(model, old))
        # What did not change need not be read again.
        changed = {p: said.text for p, said in after.items() if said.text != old[p]}
        return free_text_figures(before, after, known, {**known, **surprise(model, changed)})

    def _reloads(self, base: Measured) -> dict[str, Any]:
        """What a coarser copy of the base does to it, and what is left of the edit in one."""
        plan, found = self.plan, {}
        rows = [list(passage.ids) for passage in plan.texts]

        def band(how: Any) -> dict[str, float]:
            head = Head.of(self.sides.model, copy=True)  # bf16 rounds the head as well
            with reloaded(self.sides.model, how) as model:
                states = text_states(model, plan.texts, f"{how} reload", nll=False)
                other = [(states, Head.of(model))]
                _, [gap] = divergences(plan.texts, base.states, head, other)
            return {"kl_mean": float(gap.kl.mean()), "perplexity": perplexity(gap.nll)}

        for how in plan.suite.controls.reload:
            found[how] = self.store.json(f"reload-{how}", rows, lambda how=how: band(how))
            if plan.facts:
                with self.sides.edited() as model:
                    kept = self.unfinished.of(model).part(how)
                    with reloaded(model, how):
                        scores = score_facts(model, plan.facts, kept, f"{how} reload: facts")
                copies = [record.model_copy(deep=True) for record in plan.facts]
                fact_metrics.fill(copies, "edited", scores)
                found[how] |= {
                    figure.name: figure.edited
                    for figure in fact_metrics.figures(copies)
                    if figure.name in ("success", "paraphrase", "neighborhood")
                }
        return found

    def _shams(self, controls: dict[str, Any]) -> list[Measured]:
        part, sides, plan = self.plan.suite.controls, self.sides, self.plan
        if not part.sham or not sides.change:
            return []
        seeds = range(part.seed, part.seed + part.sham)
        try:
            whole = sides.as_delta()
            made = [make_sham(whole, seed) for seed in seeds]
        except SurgeryError as error:  # a change that is not finite has no size
            controls["sham"] = {"note": str(error)}
            return []
        found = []
        for control in made:
            with self.clock("sham"), sides.with_delta(control) as model:
                head = Head.of(model, copy=sides.base_head is not None)
                tasks = part.sham_tasks if not found else False
                kept = self.unfinished.of(model)
                found.append(measure(model, plan, "sham", kept, tasks, speak=False, head=head))
        controls["sham"] = {
            "seeds": list(seeds),
            "tensors": len(whole.tensors),
            "what": "a random edit of the same tensors with the same rank and Frobenius norm",
        }
        return found


def _earlier(records: Sequence[FactRecord]) -> list[Any]:
    found = [f for f in fact_metrics.figures(records) if f.name == "success"]
    for figure in found:
        figure.name, figure.label, figure.goal = "earlier_edits", "earlier edits still hold", "same"
    return found

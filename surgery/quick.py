"""The short way: an edit in one call, with what it changed and a way back.

    result = surgery.edit(model, "The capital of {} is", subject="France", target="Rome")
    result.before, result.after        # prompt -> answer
    result.report.verdict              # measured when it is first asked for
    result.undo()

Each call builds a spec, solves it and puts the delta on the model in memory. The command line and the
workbench do the same, with a spec from elsewhere: `perform`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from surgery.delta import Delta
from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.model import Model, chat, generate, load
from surgery.spec import EditSpec, Fact, read_facts, read_prompts
from surgery.spec.facts import first_problem
from surgery.stack import set_edits

if TYPE_CHECKING:
    from surgery.audit import Report, Suite

# What is asked before and after if nobody says: so many of a kind, for each part of the spec.
_FACTS, _PARAPHRASES, _NEIGHBOURS, _POSITIVE, _NEGATIVE = 3, 1, 2, 3, 1
ANSWER_TOKENS = 30


def edit(
    model: Model | str | os.PathLike[str],
    prompt: str,
    subject: str,
    target: str,
    method: str = "rome",
    **numbers: Any,
) -> EditResult:
    """Make `prompt` about `subject` continue with `target`; the model in memory is edited.

    model: a loaded model or a checkpoint folder. method: a kind of edit that takes facts. numbers:
    its fields (`layer=8`), and optional fields of the fact (`neighborhood_prompts=[...]`).

    Raises:
        SurgeryError: a prompt without its subject, an unknown method or field, what the method says.
    """
    of_fact = {name: numbers.pop(name) for name in list(numbers) if name in Fact.model_fields}
    fact = {"prompt": prompt, "subject": subject, "target": target, **of_fact}
    return perform(model, _spec({"kind": method, "facts": [fact], **numbers}))


def ablate(
    model: Model | str | os.PathLike[str],
    positive: Sequence[str] | str,
    negative: Sequence[str] | str,
    **numbers: Any,
) -> EditResult:
    """Remove what tells `positive` prompts from `negative` ones; the model in memory is edited.

    positive, negative: prompts, or a file of them. numbers: fields of an ablate part, such as
    `strength=0.5` or `layer=14`.

    Raises:
        SurgeryError: too few prompts, an unknown field, what the method says.
    """
    sets = {"positive": positive, "negative": negative}
    part = {name: s if isinstance(s, str) else list(s) for name, s in sets.items()}
    return perform(model, _spec({"kind": "ablate", **part, **numbers}))


def perform(model: Model | str | os.PathLike[str], spec: EditSpec) -> EditResult:
    """Solve a spec and put its delta on the model, on top of what is applied already.

    Raises:
        SurgeryError: see `surgery.solve`; the model is left as it was.
    """
    if not isinstance(model, Model):
        model = load(model)
    below = list(model.edits)
    delta = solve(spec, model)
    warnings = set_edits(model, [*below, delta])
    return EditResult(model, spec, delta, below, warnings)


@dataclass(eq=False)
class EditResult:
    """An edit on a model in memory.

    spec: as it was asked for. delta: what was solved; its metadata holds the spec with every choice
    filled in. below: the edits that were on the model already. warnings: how it goes with those.

    `before`, `after` and `report` are computed when they are first asked for. They stay true to this
    edit whatever has become of the model since, and leave it as they find it.
    """

    model: Model
    spec: EditSpec
    delta: Delta
    below: list[Delta] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def applied(self) -> bool:
        """Whether the edit is on the model right now."""
        return any(delta is self.delta for delta in self.model.edits)

    def undo(self) -> None:
        """Take the edit off again; the weights are then what they were, bit for bit.

        Raises:
            SurgeryError: a later edit on the model was solved on top of this one.
        """
        set_edits(self.model, [delta for delta in self.model.edits if delta is not self.delta])

    # ------------------------------------------------------------------ what it changed
    @cached_property
    def prompts(self) -> dict[str, str]:
        """What is asked before and after: prompt -> the text the model is given."""
        return dict(_prompts(self.spec, self.model))

    @cached_property
    def before(self) -> dict[str, str]:
        """Prompt -> answer without this edit."""
        with self._state(self.below):
            return self._answers()

    @cached_property
    def after(self) -> dict[str, str]:
        """Prompt -> answer with this edit."""
        with self._state([*self.below, self.delta]):
            return self._answers()

    @cached_property
    def report(self) -> Report:
        """The audit with the suite that the spec names, or `quick`."""
        return self.audit()

    def audit(
        self,
        suite: str | Path | Suite | None = None,
        prompts: Sequence[str] = (),
        limits: dict[str, float] | None = None,
    ) -> Report:
        """Measure the edit against the model without it. prompts: more to answer, as a chat."""
        from surgery.audit import audit

        with self._state(self.below):
            return audit(
                base=self.model,
                edited=self.delta,
                spec=self.spec,
                suite=suite or self.spec.checks.suite or "quick",
                prompts=list(prompts),
                limits=limits,
            )

    def __str__(self) -> str:
        lines = []
        for prompt, before in self.before.items():
            lines += [
                prompt,
                f"  before: {_line(before)}",
                f"  after:  {_line(self.after[prompt])}",
            ]
        return "\n".join(lines)

    def _answers(self) -> dict[str, str]:
        said = generate(self.model, list(self.prompts.values()), ANSWER_TOKENS)
        return {prompt: text.strip() for prompt, text in zip(self.prompts, said, strict=True)}

    @contextmanager
    def _state(self, deltas: list[Delta]) -> Iterator[None]:
        now = list(self.model.edits)
        same = len(now) == len(deltas) and all(a is b for a, b in zip(now, deltas, strict=True))
        if same:
            yield
            return
        set_edits(self.model, deltas, force=True)
        try:
            yield
        finally:
            set_edits(self.model, now, force=True)


def _spec(part: dict[str, Any]) -> EditSpec:
    try:
        return EditSpec.model_validate({"edits": [part]})
    except ValidationError as error:
        raise SurgeryError(first_problem(error)) from None


def _prompts(spec: EditSpec, model: Model) -> Iterator[tuple[str, str]]:
    """Facts are asked as they stand; what a direction tells apart is asked as it was read."""
    for part in spec.edits:
        facts = getattr(part, "facts", None)
        for fact in (read_facts(facts) if isinstance(facts, str) else facts or [])[:_FACTS]:
            near = [fact.filled(prompt) for prompt in fact.paraphrase_prompts[:_PARAPHRASES]]
            near += fact.neighborhood_prompts[:_NEIGHBOURS]
            for prompt in [fact.text, *near]:
                yield prompt, prompt
        framed = getattr(part, "chat", None) is not False
        for name, most in (("positive", _POSITIVE), ("negative", _NEGATIVE)):
            source = getattr(part, name, None)
            for prompt in read_prompts(source)[:most] if source else []:
                yield prompt, chat(model, prompt) if framed else prompt


def _line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"

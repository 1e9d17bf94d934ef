"""Composing and solving an edit: what it would touch, what it collides with, and how it went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from surgery.errors import SurgeryError
from ui.markup import Raw, esc, facts_list, notice, notices, percent, short, state_line, table
from ui.naming import label
from ui.session import Bench

if TYPE_CHECKING:
    from surgery.delta import Delta
    from surgery.spec import EditSpec

# Facts of an edit that are asked for right after it was solved, and how far the answers go.
SHOWN, TOKENS = 6, 10


# ---------------------------------------------------------------------- before solving
@dataclass(frozen=True)
class Plan:
    """What a spec would change here, the choices made for it, and what it collides with."""

    tensors: list[str]
    choices: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def plan(bench: Bench, spec: EditSpec) -> Plan:
    """Look ahead without solving. Raises SurgeryError for what cannot be done on this model."""
    from surgery.delta import Delta
    from surgery.stack import Lineage, check

    model = bench.model
    tensors: list[str] = []
    choices: list[str] = []
    for part in spec.edits:
        touched, chosen = _planned(part, model)
        tensors += [key for key in touched if key not in tensors]
        choices += chosen
    conflicts = []
    for earlier in bench.on:
        shared = sorted(set(tensors) & set(earlier.tensors))
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            conflicts.append(
                f"{label(earlier)} changes {shared[0]}{more} too. The new edit is solved on top of it, "
                "so both hold together; without it the new one would have to be solved again."
            )
    # A delta that changes nothing but says what it is about: the stack's own check reads its facts.
    stand_in = Delta(
        {},
        base_id=bench.base_id,
        stack=tuple(delta.id for delta in bench.on),
        metadata={"spec": spec.compact(), "edits_head": True},
    )
    lineage = Lineage.of(model.checkpoint)
    before = set(check(lineage, bench.on, force=True))
    conflicts += [
        said for said in check(lineage, [*bench.on, stand_in], force=True) if said not in before
    ]
    if spec.base is not None:
        conflicts.append(
            f"The spec names the base {spec.base}; here it is solved for {bench.path}, which is in memory."
        )
    return Plan(tensors, choices, conflicts)


def _planned(part: Any, model: Any) -> tuple[list[str], list[str]]:
    from surgery.methods.solved import weight_key

    kind = part.kind
    if kind in ("memit", "alphaedit"):
        from surgery.methods.spread import default_layers

        layers = part.layers if part.layers is not None else default_layers(model)
        for layer in layers:
            model.check_layer(layer)
        said = [] if part.layers is not None else [f"layers {_span(layers)}, chosen by depth"]
        return [weight_key(model, layer) for layer in layers], said
    if kind in ("rome", "emmet", "finetune"):
        from surgery.methods.rome import choose_layer

        layer = choose_layer(part.layer, model)
        said = [] if part.layer is not None else [f"layer {layer}, chosen by depth"]
        return [weight_key(model, layer)], said
    if kind == "ablate":
        if part.layer is not None:
            model.check_layer(part.layer)
        chosen = [
            writer
            for writer in model.writers()
            if writer.component in part.writers
            and (part.layers is None or writer.layer is None or writer.layer in part.layers)
        ]
        return [model.stored_key(writer.weight) for writer in chosen], []
    return [], []


def plan_html(found: Plan) -> str:
    rows: list[tuple[str, Any]] = []
    if found.tensors:
        count = len(found.tensors)
        more = f" and {count - 1} more" if count > 1 else ""
        rows.append(("Will change", Raw(f"<code>{esc(found.tensors[0])}</code>{more}")))
    if found.choices:
        rows.append(("Chosen for you", "; ".join(found.choices)))
    listed = facts_list(rows) if rows else ""
    if found.conflicts:
        return listed + notices(found.conflicts)
    return listed


# ---------------------------------------------------------------------- solving
@dataclass
class Told:
    """A fact after solving: what both sides now say, and how likely they find the new answer."""

    prompt: str
    target: str
    before: str
    after: str
    p_before: float
    p_after: float


@dataclass
class Outcome:
    """A solved edit that is on the stack now."""

    delta: Delta
    told: list[Told]
    seconds: float
    state: str
    stamp: str


def solve(bench: Bench, spec: EditSpec, replace: str | None = None) -> Callable[[], Outcome]:
    """The work of solving a spec on top of the stack and putting it there, for a job.

    replace: id of an edit whose place the new one takes.
    """

    def work() -> Outcome:
        import time

        from surgery.methods import solve as solve_spec

        started = time.monotonic()
        if replace is None:
            delta = solve_spec(spec, bench.model)
            bench.add(delta)
        else:
            delta = solve_spec(spec, bench.model)
            bench.replace(replace, delta)
        return Outcome(
            delta, told(bench, delta), time.monotonic() - started, bench.state, bench.stamp
        )

    return work


def solve_again(bench: Bench, id: str) -> Callable[[], Outcome]:
    """Solve an edit of the stack once more, on what is beneath it now; it keeps its place."""

    def work() -> Outcome:
        import time

        from surgery.methods import solve as solve_spec
        from surgery.spec import EditSpec
        from ui.stacks import find

        index = find(bench.stack, id)
        old = bench.deltas[bench.stack[index].id]
        if not old.metadata.get("spec"):
            raise SurgeryError(f"{label(old)} holds no spec: it cannot be solved again")
        beneath = [bench.deltas[e.id] for e in bench.stack[:index] if e.on and not e.folder]
        started = time.monotonic()
        with bench.weights(beneath):
            delta = solve_spec(EditSpec.model_validate(old.metadata["spec"]), bench.model)
        bench.replace(old.id, delta)
        return Outcome(
            delta, told(bench, delta), time.monotonic() - started, bench.state, bench.stamp
        )

    return work


def told(bench: Bench, delta: Delta) -> list[Told]:
    """Ask both sides about the facts of an edit."""
    facts = [fact for edit in _edits(delta) for fact in edit.get("facts") or []]
    facts = [fact for fact in facts if isinstance(fact, dict)][:SHOWN]
    if not facts:
        return []
    from surgery.model import continuation_ids, generate
    from surgery.spec import Fact

    asked = [Fact.model_validate(fact) for fact in facts]
    texts = [fact.text for fact in asked]
    goals = [" " + fact.target.strip() for fact in asked]
    rows = []
    for side in (bench.as_base, bench.as_edited):
        with side() as model:
            ids = [continuation_ids(model, t, g) for t, g in zip(texts, goals, strict=True)]
            said = generate(model, texts, max_new_tokens=TOKENS)
            rows.append((said, [_probability(model, *pair) for pair in ids]))
    return [
        Told(text, fact.target, rows[0][0][i], rows[1][0][i], rows[0][1][i], rows[1][1][i])
        for i, (text, fact) in enumerate(zip(texts, asked, strict=True))
    ]


def _probability(model: Any, head: list[int], tail: list[int]) -> float:
    """Probability of the whole continuation."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([head + tail], device=model.device)
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, len(head) - 1 : -1].float()
        scores = logits.log_softmax(-1).gather(-1, torch.tensor(tail, device=model.device)[:, None])
    return float(scores.sum().exp())


def outcome_html(done: Outcome) -> str:
    delta = done.delta
    took = [one for one in done.told if one.p_after > 0.5]
    if not done.told:
        head = notice(f"Solved in {done.seconds:.0f} s and put on the stack.", "good")
    elif len(took) == len(done.told):
        head = notice(
            f"Solved in {done.seconds:.0f} s, and it took. It is on the stack now.", "good"
        )
    else:
        missed = len(done.told) - len(took)
        head = notice(
            f"Solved in {done.seconds:.0f} s, but {missed} of {len(done.told)} answers stay below "
            "50 %. Try another layer, or more steps.",
            "warn",
        )
    rows = [
        (
            Raw(f'{esc(one.prompt)}<em class="goal"> {esc(one.target)}</em>'),
            Raw(f'<span class="said">{esc(one.before.strip())}</span>'),
            Raw(f'<span class="said">{esc(one.after.strip())}</span>'),
            percent(one.p_before),
            percent(one.p_after),
        )
        for one in done.told
    ]
    asked = (
        table(["Asked", "Base says", "Edited says", "p before", "p after"], rows, "tttnn", "told")
        if rows
        else ""
    )
    norms = sorted(delta.norms().items(), key=lambda pair: -pair[1])[:3]
    about = facts_list(
        [
            ("Delta", Raw(f"<code>{short(delta.id)}</code>")),
            (
                "Changes",
                Raw(
                    "<br>".join(
                        f"<code>{esc(k)}</code> rank {delta.tensors[k].rank}" for k, _ in norms
                    )
                    + (f"<br>and {len(delta.tensors) - 3} more" if len(delta.tensors) > 3 else "")
                ),
            ),
        ]
    )
    warned = [w for d in delta.metadata.get("diagnostics", []) for w in d.get("warnings", [])]
    return state_line(done.state, "", done.stamp) + head + asked + about + notices(warned)


def _edits(delta: Delta) -> list[dict[str, Any]]:
    spec = delta.metadata.get("spec") or {}
    return [e for e in spec.get("edits", []) if isinstance(e.get("facts"), list)]


def _span(layers: list[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])

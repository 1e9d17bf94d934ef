"""The search: Optuna over layer, strength curve and edited layers, with every trial kept on disk.

A trial is one line of numbers, so several processes may search into the same journal file, and a search
that was stopped goes on where it was. Multi-objective TPE: the result is a front, not a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import SurgeryError
from surgery.methods import solve
from surgery.model import Model
from surgery.spec import EditSpec
from surgery.spec.edits import AblateEdit
from surgery.stack import applied
from surgery.tune.metrics import UNITS, Bench, Objective

SEARCHES = ("strength", "layers", "direction")


@dataclass(frozen=True)
class Point:
    """A trial: its number, what was tried, what it scored, and the spec that makes it again."""

    number: int
    params: dict[str, Any]
    values: dict[str, float]
    spec: EditSpec

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {"trial": self.number, "params": self.params, "metrics": self.values}


@dataclass(frozen=True)
class Tuned:
    """All finished trials, those on the front, and the one that was chosen."""

    objectives: Sequence[Objective]
    points: Sequence[Point]
    front: Sequence[Point]
    chosen: Point

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "objectives": [{"metric": o.name, "way": o.way} for o in self.objectives],
            "trials": len(self.points),
            "front": [point.data() for point in self.front],
            "chosen": self.chosen.data(),
        }


def tune(
    spec: EditSpec,
    model: Model,
    bench: Bench,
    objectives: Sequence[Objective],
    *,
    trials: int = 30,
    journal: str | Path | None = None,
    search: Sequence[str] = SEARCHES,
    seed: int = 0,
) -> Tuned:
    """Search the numbers of the spec's ablate part.

    trials: how many this process adds. journal: file that keeps the trials; None keeps them in memory.

    Raises:
        SurgeryError: no ablate part, or a journal of another spec or other objectives.
    """
    import optuna

    from surgery.tune.sampler import ByTrial

    place = _part(spec)
    for name in search:
        if name not in SEARCHES:
            raise SurgeryError(f"cannot search {name!r} (known: {', '.join(SEARCHES)})")
    bench.check(objectives)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=_storage(journal),
        sampler=ByTrial(seed),
        study_name="surgery-tune",
        directions=[o.way for o in objectives],
        load_if_exists=True,
    )
    _claim(study, spec, model, objectives)

    def run(trial: optuna.Trial) -> list[float]:
        tried = propose(trial, spec, place, model.n_layers, search)
        trial.set_user_attr("spec", tried.compact())
        with applied(model, solve(tried, model)):
            found = bench.measure(model, f"trial {trial.number}")
        trial.set_user_attr("metrics", found)
        return [found[o.name] for o in objectives]

    study.optimize(run, n_trials=trials)
    points = [_point(t) for t in study.trials if t.values is not None]
    best = {t.number for t in study.best_trials}
    front = sorted(
        (p for p in points if p.number in best), key=lambda p: p.values[objectives[0].name]
    )
    return Tuned(objectives, points, front, choose(front, objectives))


def propose(
    trial: Any, spec: EditSpec, place: int, n_layers: int, search: Sequence[str]
) -> EditSpec:
    """The spec with the numbers of one trial: a strength that falls off linearly around a peak."""
    part = spec.edits[place]
    assert isinstance(part, AblateEdit)
    changes: dict[str, Any] = {}
    amplify = isinstance(part.strength, float | int) and part.strength < 0
    top = part.strength if isinstance(part.strength, float | int) else 1.0
    if "strength" in search:
        top = trial.suggest_float("strength", *((-2.0, -0.1) if amplify else (0.2, 1.5)))
    sparing = part.sparing if part.spare is not None else "orthogonal"
    if sparing != "orthogonal":
        if "strength" in search:
            changes["strength"] = top
        if "layers" in search:
            changes["layers"] = _some_layers(trial, n_layers, sparing)
        # The detector of a shift has a third number; what is distilled reads what it can.
        if "direction" in search and sparing == "shift":
            changes["ridge"] = trial.suggest_float("ridge", 0.003, 3.0, log=True)
    elif "layers" in search:
        peak = trial.suggest_float("peak", 0.3, 1.0) * (n_layers - 1)
        reach = trial.suggest_float("reach", 0.15, 1.0) * (n_layers - 1)
        floor = trial.suggest_float("floor", 0.0, 1.0)
        changes["layers"] = None
        changes["strength"] = {
            layer: round(top * (1 - (1 - floor) * abs(layer - peak) / max(reach, 1e-9)), 4)
            for layer in range(n_layers)
            if abs(layer - peak) <= reach
        }
    elif "strength" in search:
        changes["strength"] = top
    if "direction" in search and part.direction is None and sparing == "orthogonal":
        changes["layer"] = trial.suggest_int("layer", round(0.3 * n_layers), int(0.8 * n_layers))
    both = "attention" in part.writers and "mlp" in part.writers
    if both and "layers" in search and sparing == "orthogonal":
        if not trial.suggest_categorical("mlp", [True, False]):
            changes["writers"] = [w for w in part.writers if w != "mlp"]
    edits = list(spec.edits)
    edits[place] = part.model_copy(update=changes)
    return spec.model_copy(update={"edits": edits})


def _some_layers(trial: Any, n_layers: int, sparing: str) -> list[int]:
    """Four layers one to three apart for a shift, ten to twenty in a row (of 30) for what is distilled."""
    low, high = round(0.2 * n_layers), max(1, int(0.8 * n_layers) - 1)
    first = trial.suggest_int("first", low, high)
    if sparing == "shift":
        step = trial.suggest_int("step", 1, 3)
        return [x for x in range(first, first + 4 * step, step) if x < n_layers]
    count = trial.suggest_int("count", max(1, n_layers // 3), max(1, 2 * n_layers // 3))
    return list(range(first, min(first + count, n_layers)))


def choose(front: Sequence[Point], objectives: Sequence[Objective]) -> Point:
    """The point of the front nearest to the best of every objective, in the units of `UNITS`."""
    if not front:
        raise SurgeryError("no trial was finished: nothing to choose from")

    def badness(point: Point) -> float:
        total = 0.0
        for o in objectives:
            values = [p.values[o.name] for p in front]
            best = min(values) if o.way == "minimize" else max(values)
            total += ((point.values[o.name] - best) / UNITS[o.name]) ** 2
        return total

    return min(front, key=lambda point: (badness(point), point.number))


def _part(spec: EditSpec) -> int:
    for place, part in enumerate(spec.edits):
        if isinstance(part, AblateEdit):
            return place
    raise SurgeryError("nothing to tune: the spec has no edit of kind ablate")


def _storage(journal: str | Path | None) -> Any:
    if journal is None:
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    Path(journal).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(journal)))


def _claim(study: Any, spec: EditSpec, model: Model, objectives: Sequence[Objective]) -> None:
    """A journal belongs to one spec, one base and one set of objectives."""
    mine = {
        "spec": spec.id,
        "base": model.checkpoint.id,
        "objectives": [f"{o.way}:{o.name}" for o in objectives],
    }
    theirs = study.user_attrs.get("surgery")
    if theirs is None:
        study.set_user_attr("surgery", mine)
    elif theirs != mine:
        differs = ", ".join(key for key in mine if theirs.get(key) != mine[key])
        raise SurgeryError(
            f"the journal belongs to another search (other {differs}): name a new file"
        )


def _point(trial: Any) -> Point:
    return Point(
        trial.number,
        dict(trial.params),
        dict(trial.user_attrs["metrics"]),
        EditSpec.model_validate(trial.user_attrs["spec"]),
    )

"""The bench: one model in memory, the edits on it, and the lock that keeps them together.

There is one bench in a process. All browser windows look at the same one, as at one document; what a
window keeps for itself are ids: the revision it last saw, its conversation, its last report. Whoever
changes the stack says which revision he was looking at, and is told when that is an old one.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from surgery.errors import SurgeryError
from ui.jobs import Job
from ui.naming import label, state_name
from ui.stacks import Entry, History, Stack, find, moved, removed, toggled

if TYPE_CHECKING:
    from surgery.delta import Delta
    from surgery.model import Model
    from ui.proof import Proof

T = TypeVar("T")


class Bench:
    """Model, stack and history. Every method that touches the weights holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.revision = 0
        self.deltas: dict[str, Delta] = {}
        self.history = History()
        self.warnings: list[str] = []
        self.proof: Proof | None = None
        self.solved_here: dict[str, Any] = {}
        self._model: Model | None = None
        self._jobs: dict[str, Job[Any]] = {}

    # ------------------------------------------------------------------ the checkpoint
    @property
    def is_open(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> Model:
        if self._model is None:
            raise SurgeryError("no model is loaded: choose a checkpoint first")
        return self._model

    @property
    def name(self) -> str:
        return self.model.checkpoint.path.name

    @property
    def path(self) -> Path:
        return self.model.checkpoint.path

    @property
    def base_id(self) -> str:
        from surgery.stack import Lineage

        return Lineage.of(self.model.checkpoint).base_id

    def open(self, path: str | Path) -> None:
        """Load another checkpoint. If that fails, the present one stays as it is.

        Raises:
            SurgeryError: no checkpoint there, or one that cannot be loaded.
        """
        from surgery.model import load
        from surgery.stack import Lineage

        with self.lock:
            model = load(Path(path).expanduser())
            below = Lineage.of(model.checkpoint).deltas
            self._model = model
            self.deltas = {delta.id: delta for delta in below}
            start = tuple(Entry(delta.id, folder=True) for delta in below)
            self.history = History([start])
            self.warnings, self.solved_here = [], {}
            self._changed()

    # ------------------------------------------------------------------ the stack
    @property
    def stack(self) -> Stack:
        return self.history.now

    @property
    def on(self) -> list[Delta]:
        """The edits that are on, oldest first, those of the folder included."""
        return [self.deltas[entry.id] for entry in self.stack if entry.on]

    @property
    def here(self) -> list[Delta]:
        """The edits that are on and did not come with the folder."""
        return [self.deltas[e.id] for e in self.stack if e.on and not e.folder]

    def combined(self, deltas: Sequence[Delta]) -> Delta:
        """Several edits as one change of the base, which says what all of them were about."""
        from surgery.delta import Delta, combine

        parts = [e for d in deltas for e in (d.metadata.get("spec") or {}).get("edits", [])]
        return Delta(
            combine([delta.tensors for delta in deltas]),
            base_id=self.base_id,
            untie=any(delta.untie for delta in deltas),
            metadata={
                "edits_head": any(d.metadata.get("edits_head") for d in deltas),
                **({"spec": {"version": 1, "name": "the stack", "edits": parts}} if parts else {}),
            },
        )

    @property
    def state(self) -> str:
        """The state the model is in, in words."""
        if not self.is_open:
            return "no model loaded"
        named = [(label(self.deltas[entry.id]), entry.on) for entry in self.stack]
        return state_name(self.name, named)

    @property
    def stamp(self) -> str:
        """A short mark of the state: the same base with the same edits on, in order, has the same."""
        import hashlib

        if not self.is_open:
            return "none"
        ids = [str(self.path), *(delta.id for delta in self.on)]
        return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:10]

    def add(self, delta: Delta) -> None:
        """Put a delta on top of the stack."""
        if any(entry.id == delta.id for entry in self.stack):
            raise SurgeryError(f"{label(delta)} ({delta.id[:12]}) is in the stack already")
        with self.lock:
            from surgery.stack import Lineage, check

            check(Lineage.of(self.model.checkpoint), [*self.on, delta])
            self.deltas[delta.id] = delta
            self._go((*self.stack, Entry(delta.id)))

    def toggle(self, id: str, seen: int | None = None) -> None:
        self._change(lambda stack: toggled(stack, id), seen)

    def remove(self, id: str, seen: int | None = None) -> None:
        self._change(lambda stack: removed(stack, id), seen)

    def move(self, id: str, by: int, seen: int | None = None) -> None:
        self._change(lambda stack: moved(stack, id, by), seen)

    def replace(self, id: str, delta: Delta) -> None:
        """The same place in the stack, another delta: an edit that was solved again."""
        with self.lock:
            index = find(self.stack, id)
            self.deltas[delta.id] = delta
            self._go((*self.stack[:index], Entry(delta.id), *self.stack[index + 1 :]))

    def undo(self, seen: int | None = None) -> None:
        self._step(-1, seen)

    def redo(self, seen: int | None = None) -> None:
        self._step(+1, seen)

    def stale(self) -> dict[str, str]:
        """Edits that were solved on top of one that is off, gone, or above them now; and why."""
        found: dict[str, str] = {}
        present: list[str] = []
        for entry in self.stack:
            delta = self.deltas[entry.id]
            missing = [one for one in delta.stack if one not in present]
            if entry.on and missing:
                known = self.deltas.get(missing[0])
                under = label(known) if known is not None else missing[0][:12]
                found[entry.id] = f"solved on top of “{under}”, which is not beneath it now"
            if entry.on:
                present.append(entry.id)
        return found

    # ------------------------------------------------------------------ looking at both sides
    @contextlib.contextmanager
    def as_base(self) -> Iterator[Model]:
        """The model without any edit, for the length of the block."""
        with self.weights([], off_folder=True) as model:
            yield model

    @contextlib.contextmanager
    def as_edited(self) -> Iterator[Model]:
        """The model as the stack says."""
        with self.lock:
            yield self.model

    @contextlib.contextmanager
    def weights(self, deltas: Sequence[Delta], off_folder: bool = False) -> Iterator[Model]:
        """The model with exactly these deltas instead of the stack's, for the length of the block."""
        from surgery.stack import Lineage, set_edits

        with self.lock:
            model = self.model
            before, off = list(model.edits), model.off
            below = Lineage.of(model.checkpoint).ids if off_folder else off
            if [d.id for d in before] == [d.id for d in deltas] and off.issuperset(below):
                yield model
                return
            set_edits(model, list(deltas), force=True, off=below)
            try:
                yield model
            finally:
                set_edits(model, before, force=True, off=off)

    # ------------------------------------------------------------------ proof
    def prove(self) -> Proof:
        """Hash every tensor in memory now."""
        from ui.proof import prove

        with self.lock:
            self.proof = prove(self.model)
            return self.proof

    # ------------------------------------------------------------------ long work
    def job(self, name: str, work: Callable[[], T], owner: str = "") -> Job[T]:
        """Work on the model that can be cancelled by whoever owns it. Starts when it is iterated."""

        def locked() -> T:
            with self.lock:
                return work()

        self._jobs = {who: one for who, one in self._jobs.items() if not one.ended}
        job = Job(name, locked, owner)
        self._jobs[owner] = job
        return job

    @property
    def at_work(self) -> str:
        """What is going on with the model, for everybody who has to wait for it; empty if nothing."""
        return next((job.label for job in list(self._jobs.values()) if job.started), "")

    def cancel(self, owner: str = "") -> bool:
        """Stop the owner's job; whether there was one that had not been stopped yet."""
        job = self._jobs.get(owner)
        if job is None or job.cancelled or job.ended:
            return False
        job.cancel()
        return True

    # ------------------------------------------------------------------ inside
    def _change(self, how: Callable[[Stack], Stack], seen: int | None) -> None:
        with self.lock:
            self._check(seen)
            self._go(how(self.stack))

    def _step(self, by: int, seen: int | None) -> None:
        with self.lock:
            self._check(seen)
            at = self.history.at + by
            if not 0 <= at < len(self.history.states):
                raise SurgeryError("nothing to undo" if by < 0 else "nothing to redo")
            self._put_on(self.history.states[at])
            self.history.at = at
            self._changed()

    def _go(self, stack: Stack) -> None:
        self._put_on(stack)
        self.history.record(stack)
        self._changed()

    def _put_on(self, stack: Stack) -> None:
        """Make the weights what `stack` says; on failure they are as before.

        An order the edits were not solved in is not refused here: switching one off is how people
        find out what it did. It is shown beside the edit as long as it lasts (`stale`).
        """
        from surgery.stack import set_edits

        model = self.model
        deltas = [self.deltas[e.id] for e in stack if e.on and not e.folder]
        off = {entry.id for entry in stack if entry.folder and not entry.on}
        self.warnings = set_edits(model, deltas, force=True, off=off)

    def _check(self, seen: int | None) -> None:
        if seen is not None and seen != self.revision:
            raise SurgeryError(
                "the stack was changed in another window, and is shown as it is now: "
                "look, and press again"
            )

    def _changed(self) -> None:
        self.revision += 1
        self.proof = None
        if self.is_open and small_enough(self.model):
            self.prove()


# Hashing runs at about half a gigabyte a second; beyond this it is done when asked for.
PROOF_BYTES = 1 << 30


def small_enough(model: Model) -> bool:
    return sum(ref.nbytes for ref in model.checkpoint.tensors.values()) <= PROOF_BYTES


def new_id() -> str:
    """An id that cannot be guessed: for what one window keeps and others should not get at."""
    return secrets.token_urlsafe(12)


BENCH = Bench()

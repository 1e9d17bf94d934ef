"""Long work in a thread of its own: progress as it goes, and a cancel that unwinds it.

A function that runs inside a Gradio handler cannot be stopped from outside. So the handler is a
generator that watches a `Job`, and the job raises `Cancelled` at the library's next progress report:
the work unwinds as from any exception, and every context manager puts back what it changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from surgery.errors import Cancelled
from surgery.progress import listen

T = TypeVar("T")


# All model work runs on this one thread: torch keeps a pool of workers for every thread that calls
# it, and traces by nnsight must not move from one thread to another.
_WORKER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")


@dataclass(frozen=True)
class Step:
    """Where the work is. share: 0..1, None when nobody knows how much there is."""

    label: str
    done: float
    total: float | None
    seconds: float

    @property
    def share(self) -> float | None:
        return min(1.0, self.done / self.total) if self.total else None


class Job(Generic[T]):
    """One piece of work. Start it with `steps()`, stop it with `cancel()`, then ask `result()`."""

    def __init__(self, label: str, work: Callable[[], T], owner: str = "") -> None:
        self.label, self.owner = label, owner
        self._work = work
        self._stop = threading.Event()
        self._done = threading.Event()
        self._began: float | None = None
        self._step = Step(label, 0, None, 0.0)
        self._value: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> None:
        """Ask the work to stop at its next step. Returns at once."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        return self._stop.is_set()

    @property
    def started(self) -> bool:
        """Whether it is at work now."""
        return self._began is not None and not self._done.is_set()

    @property
    def ended(self) -> bool:
        return self._done.is_set()

    def steps(self, every: float = 0.25) -> Iterator[Step]:
        """Run the work, and report where it is until it has ended, however it ended.

        When whoever iterates goes away (a closed browser tab), the work is cancelled and waited for:
        nobody may touch the model before it is as it was.
        """
        self._began = time.monotonic()
        _WORKER.submit(self._run)
        try:
            yield self._now()
            while not self._done.wait(every):
                yield self._now()
        finally:
            if not self._done.is_set():
                self.cancel()
                self._done.wait()

    def result(self) -> T:
        """What the work returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def _now(self) -> Step:
        step = self._step
        return Step(step.label, step.done, step.total, time.monotonic() - (self._began or 0.0))

    def _report(self, label: str, done: float, total: float | None) -> None:
        if self._stop.is_set():
            raise Cancelled(self.label)
        self._step = Step(label, done, total, 0.0)

    def _run(self) -> None:
        try:
            if self._stop.is_set():
                raise Cancelled(self.label)
            with listen(self._report):
                self._value = self._work()
        except BaseException as error:  # handed on by `result`
            self._error = error
        finally:
            self._done.set()

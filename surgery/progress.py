"""Progress of long work: a bar on standard error, and a hook for whoever else wants to know.

The library calls `track` around its loops and never prints. A bar shows up only when the work takes
longer than a moment. The workbench listens with `listen`, and cancels by raising `Cancelled` there.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from surgery.errors import Cancelled

__all__ = ["Cancelled", "Meter", "listen", "meter", "track"]

T = TypeVar("T")
Listener = Callable[[str, float, float | None], None]

_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar(
    "surgery_progress", default=None
)


@contextlib.contextmanager
def listen(callback: Listener) -> Iterator[None]:
    """Call `callback(label, done, total)` at every step of the work inside the block.

    The callback may raise `Cancelled`: the work unwinds as from any exception, so nothing half-made
    is left behind.
    """
    token = _listener.set(callback)
    try:
        yield
    finally:
        _listener.reset(token)


class Meter:
    """One running count. Use it through `meter(...)`."""

    def __init__(self, label: str, total: float | None, unit: str) -> None:
        from tqdm import tqdm

        self.label, self.total, self.done = label, total, 0.0
        self._callback = _listener.get()
        self._bar = tqdm(
            total=total,
            desc=label,
            unit=unit,
            unit_scale=unit == "B",
            file=sys.stderr,
            delay=1.0,
            leave=False,
            dynamic_ncols=True,
            disable=bool(os.environ.get("SURGERY_QUIET")),
        )

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self._bar.update(amount)
        if self._callback is not None:
            self._callback(self.label, self.done, self.total)

    def note(self, text: str) -> None:
        """A few words behind the bar, such as the present loss."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def meter(label: str, total: float | None = None, unit: str = "it") -> Iterator[Meter]:
    """Progress of work that is not a plain loop: call `.advance(n)` as it goes."""
    running = Meter(label, total, unit)
    try:
        yield running
    finally:
        running.close()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items`, showing progress."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with meter(label, total) as running:
        for item in items:
            yield item
            running.advance()

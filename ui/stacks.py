"""The stack as plain data: which edits, in which order, on or off, and how it came to be so.

A state of the stack is a tuple of entries and never changes; history is a list of such tuples. So
undo and redo are a step along the list, and cannot lose anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from surgery.errors import SurgeryError


@dataclass(frozen=True)
class Entry:
    """An edit by the id of its delta. folder: it came with the checkpoint and cannot be moved."""

    id: str
    on: bool = True
    folder: bool = False


Stack = tuple[Entry, ...]


@dataclass
class History:
    """Every state the stack was in, and which of them it is in now."""

    states: list[Stack] = field(default_factory=lambda: [()])
    at: int = 0

    @property
    def now(self) -> Stack:
        return self.states[self.at]

    @property
    def can_undo(self) -> bool:
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        return self.at + 1 < len(self.states)

    def record(self, stack: Stack) -> None:
        """A new state after the present one; what had been undone is forgotten."""
        if stack != self.now:
            self.states[self.at + 1 :] = [stack]
            self.at += 1


def toggled(stack: Stack, id: str) -> Stack:
    index = find(stack, id)
    return _swap(stack, index, replace(stack[index], on=not stack[index].on))


def removed(stack: Stack, id: str) -> Stack:
    index = find(stack, id)
    if stack[index].folder:
        raise SurgeryError(
            "this edit came with the checkpoint: switch it off instead of removing it"
        )
    return stack[:index] + stack[index + 1 :]


def moved(stack: Stack, id: str, by: int) -> Stack:
    """The edit `by` places later (or earlier, if negative). Edits of the folder stay below."""
    index = find(stack, id)
    lowest = sum(entry.folder for entry in stack)
    if stack[index].folder:
        raise SurgeryError("this edit came with the checkpoint: it stays below the others")
    rest = list(stack[:index] + stack[index + 1 :])
    rest.insert(min(max(index + by, lowest), len(rest)), stack[index])
    return tuple(rest)


def find(stack: Stack, id: str) -> int:
    """Index of an edit by its id or the beginning of one."""
    hits = [i for i, entry in enumerate(stack) if id and entry.id.startswith(id)]
    if len(hits) != 1:
        raise SurgeryError(f"no edit {id[:12]!r} in the stack")
    return hits[0]


def _swap(stack: Stack, index: int, entry: Entry) -> Stack:
    return (*stack[:index], entry, *stack[index + 1 :])

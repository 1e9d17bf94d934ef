"""Plain forward hooks that are always taken off again, and that accept a bare tensor or a tuple."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class Stop(Exception):
    """Raised in a hook to end a forward pass once everything wanted has been seen."""


class Attach:
    """Registers hooks that take (module, args, kwargs[, output]) and remembers them."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def pre(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def post(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))


@contextlib.contextmanager
def hooks() -> Iterator[Attach]:
    """Hooks for the length of the block. A `Stop` raised by one of them ends the block quietly."""
    attach = Attach()
    try:
        yield attach
    except Stop:
        pass
    finally:
        for handle in attach.handles:
            handle.remove()


def first(output: Any) -> torch.Tensor:
    """The hidden states out of a module's output: a tensor, or the first of a tuple."""
    return output if isinstance(output, torch.Tensor) else output[0]


def with_first(output: Any, hidden: torch.Tensor) -> Any:
    """The same output with its hidden states replaced."""
    return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])


def argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states a module is called with."""
    return args[0] if args else kwargs["hidden_states"]


def with_argument(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor) -> Any:
    """The same call with other hidden states, as a pre-hook returns it."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

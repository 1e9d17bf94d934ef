"""Reading and replacing hidden states during one forward pass: by nnsight, or by plain hooks.

Both engines do the same through one function, `run`, and a test holds them to it. This is the only
module that imports nnsight, for two reasons:

- With its defaults nnsight adds a `save` attribute to every Python object, after which a web server
  that starts in the same process fails. `nnsight.yaml` beside this file turns that off.
- A model can be traced by one thread at a time. Every pass here is made under one lock.

nnsight leaves a thin wrapper around the `forward` of each module it has traced; results, saving and
plain hooks are not affected by it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.model.hooks import argument, first, hooks, with_argument, with_first
from surgery.trace.sites import Site

Engine = Literal["nnsight", "hooks"]
Change = Callable[[torch.Tensor], torch.Tensor]

_CONFIG = Path(__file__).with_name("nnsight.yaml")
# One pass at a time, in the whole process: nnsight's state and hooks on a shared model both need it.
_lock = threading.RLock()
_wrapped: weakref.WeakKeyDictionary[Model, Any] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Run:
    """hidden: what passed at each site asked for, (rows, tokens, d). logits: (rows, kept, vocabulary)."""

    hidden: dict[Site, torch.Tensor]
    logits: torch.Tensor


def run(
    model: Model,
    inputs: Mapping[str, Any],
    reads: Sequence[Site] = (),
    changes: Mapping[Site, Change] | None = None,
    begin: tuple[int, torch.Tensor] | None = None,
    engine: Engine = "nnsight",
) -> Run:
    """One forward pass without gradients.

    inputs: keyword arguments of the model (`Batch.inputs()` and the like).
    reads: sites to keep. Where a site is also changed, what is kept is the changed value.
    changes: by site, a function from what passes there to what is to pass instead; it must not write
        into its argument.
    begin: (layer, hidden). The blocks below `layer` are not run; `hidden` goes into `layer`.

    Raises:
        SurgeryError: a layer the model does not have, an unknown engine.
    """
    changes = dict(changes or {})
    skipped = 0
    if begin is not None:
        layer, hidden = begin
        if layer == 0:
            changes[Site("stream_in", 0)] = lambda _old: hidden
        skipped = layer
    plan = _Plan(
        sites=sorted({*reads, *changes}, key=lambda site: site.order),
        reads=set(reads),
        changes=changes,
        skipped=skipped,
        replacement=begin[1] if begin is not None else None,
    )
    if engine not in _ENGINES:
        raise SurgeryError(f"no engine {engine!r}: there are {', '.join(_ENGINES)}")
    with _lock, torch.no_grad():
        return _ENGINES[engine](model, dict(inputs), plan)


def capture(
    model: Model, inputs: Mapping[str, Any], sites: Sequence[Site], engine: Engine = "nnsight"
) -> dict[Site, torch.Tensor]:
    """What passes at each site, (rows, tokens, d)."""
    return run(model, {**inputs, "logits_to_keep": 1}, sites, engine=engine).hidden


@dataclass(frozen=True)
class _Plan:
    sites: list[Site]
    reads: set[Site]
    changes: Mapping[Site, Change]
    skipped: int
    replacement: torch.Tensor | None

    def passing(self, site: Site, hidden: torch.Tensor) -> torch.Tensor:
        change = self.changes.get(site)
        return hidden if change is None else change(hidden)


# ---------------------------------------------------------------------- nnsight
def load_nnsight() -> Any:
    """The nnsight module, imported with the configuration it has to have here."""
    with _lock:
        if "nnsight" in sys.modules:
            return sys.modules["nnsight"]
        before = os.environ.get("NNSIGHT_CONFIG")
        os.environ["NNSIGHT_CONFIG"] = str(_CONFIG)
        try:
            import nnsight
        except ImportError as error:
            raise SurgeryError(f"tracing needs nnsight, which does not import: {error}") from None
        finally:
            if before is None:
                del os.environ["NNSIGHT_CONFIG"]
            else:
                os.environ["NNSIGHT_CONFIG"] = before
        return nnsight


def traced(model: Model) -> Any:
    """The model as nnsight sees it; made once per model."""
    nnsight = load_nnsight()
    with _lock:
        if model not in _wrapped:
            # nnsight sets the padding of the tokenizer it is given: it gets one of its own.
            tokenizer = copy.deepcopy(model.tokenizer)
            _wrapped[model] = nnsight.TransformersModel(model.hf, tokenizer=tokenizer)
        return _wrapped[model]


def _by_nnsight(model: Model, inputs: dict[str, Any], plan: _Plan) -> Run:
    nnsight, lm = load_nnsight(), traced(model)
    places = [(site, lm.get(site.path(model))) for site in plan.sites]
    below = [lm.get(model.architecture.layer(layer)) for layer in range(plan.skipped)]
    replacement = plan.replacement
    hidden: dict[Site, Any] = {}
    logits: Any = None
    with lm.trace(inputs):
        for place in below:
            place.skip(replacement)
        for site, place in places:
            whole = place.input if site.is_input else place.output
            now = plan.passing(site, first(whole))
            if site in plan.changes:
                if site.is_input:
                    place.input = now
                else:
                    place.output = with_first(whole, now)
            if site in plan.reads:
                hidden[site] = nnsight.save(now)
        logits = nnsight.save(lm.output.logits)
    return Run(hidden, logits)


# ---------------------------------------------------------------------- plain hooks
def _by_hooks(model: Model, inputs: dict[str, Any], plan: _Plan) -> Run:
    hidden: dict[Site, torch.Tensor] = {}

    def entering(site: Site) -> Callable[..., Any]:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            now = plan.passing(site, argument(args, kwargs))
            if site in plan.reads:
                hidden[site] = now
            return with_argument(args, kwargs, now)

        return hook

    def leaving(site: Site) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            now = plan.passing(site, first(output))
            if site in plan.reads:
                hidden[site] = now
            return with_first(output, now) if site in plan.changes else output

        return hook

    with hooks() as attach, _skipping(model, plan.skipped, plan.replacement):
        for site in plan.sites:
            module = model.module(site.path(model))
            if site.is_input:
                attach.pre(module, entering(site))
            else:
                attach.post(module, leaving(site))
        logits = model.hf(**inputs).logits
        return Run(hidden, logits)
    raise AssertionError("unreachable: no hook here stops the pass")


@contextlib.contextmanager
def _skipping(model: Model, count: int, replacement: torch.Tensor | None) -> Iterator[None]:
    """The first `count` blocks hand on `replacement` instead of running."""
    modules: list[Any] = [model.layer(layer) for layer in range(count)]
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = lambda *_args, **_kwargs: replacement
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


_ENGINES: dict[str, Callable[[Model, dict[str, Any], _Plan], Run]] = {
    "nnsight": _by_nnsight,
    "hooks": _by_hooks,
}

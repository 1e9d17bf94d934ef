"""The work of a causal trace: run the noised prompt again with single states put back.

Everything that the restorations of a prompt share is computed once (`Restorer.prepare`): the clean
states, the noised stream into every layer, and the noised keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from surgery.facts.rows import answer_ids
from surgery.model import Model, pad
from surgery.statistics.text import read_passages
from surgery.trace.engine import Engine, run
from surgery.trace.sites import Site, every

TraceKind = Literal["stream", "mlp", "attention"]
KINDS: tuple[TraceKind, ...] = ("stream", "mlp", "attention")
State = tuple[TraceKind, int]  # what is restored, and in which layer
# The effect, as a share of what the noise takes away, from which on a state gets all noise samples.
_NOTICED = 0.01
# Rows times tokens from which on a batch is worth a pass of its own.
_WORTHWHILE = 48
# How many distinct tokens of the shipped text the spread of embeddings is measured on.
_SPREAD_TOKENS = 2000


@torch.no_grad()
def embedding_spread(model: Model) -> float:
    """Standard deviation of what the embedding writes, over tokens that real text is made of.

    Over the whole table it would be distorted by tokens that never occur.
    """
    seen: dict[int, None] = {}
    for passage in read_passages():
        for token in model.tokenizer(passage, add_special_tokens=False)["input_ids"]:
            seen.setdefault(token)
        if len(seen) >= _SPREAD_TOKENS:
            break
    ids = torch.tensor(list(seen)[:_SPREAD_TOKENS], device=model.device)
    return float(model.embedding(ids).float().std())


@dataclass
class Restorer:
    """Everything about a prompt that all its restorations share."""

    model: Model
    ids: list[int]
    first: int  # the subject's first token; nothing before it changes
    answer: int
    base: float
    sigma: float
    corrupted: torch.Tensor  # (samples,) probability of the answer
    clean: dict[Site, torch.Tensor]  # (tokens, d)
    noised: dict[int, torch.Tensor]  # stream into each layer, (samples, tokens, d)
    # Keys and values of the noised run by layer, (samples, heads, tokens, ..).
    past: list[tuple[torch.Tensor, torch.Tensor]]
    window: int
    engine: Engine

    @property
    def corrupted_mean(self) -> float:
        return float(self.corrupted.mean())

    @property
    def samples(self) -> int:
        return len(self.corrupted)

    @classmethod
    def prepare(
        cls,
        model: Model,
        ids: list[int],
        span: tuple[int, int],
        noise: float,
        samples: int,
        seed: int,
        text: str,
        answer: str | None,
        window: int,
        engine: Engine,
    ) -> Restorer:
        from transformers import DynamicCache

        sites = [site for kind in KINDS for site in every(kind, model)]
        one = {**pad([ids], model).inputs(), "use_cache": False, "logits_to_keep": 1}
        clean = run(model, one, sites, engine=engine)
        odds = clean.logits[0, -1].float().softmax(-1)
        token = int(odds.argmax()) if answer is None else answer_ids(model, text, answer)[0]

        sigma = noise * embedding_spread(model)
        generator = torch.Generator().manual_seed(seed)
        first, last = span
        shape = (samples, last + 1 - first, model.hidden_size)
        # Drawn on the CPU in float32, so that the same seed is the same noise on every device.
        kick = sigma * torch.randn(shape, generator=generator)

        def corrupt(hidden: torch.Tensor) -> torch.Tensor:
            changed = hidden.clone()
            changed[:, first : last + 1] += kick.to(hidden.device, hidden.dtype)
            return changed

        cache = DynamicCache()
        noised = run(
            model,
            {
                **pad([ids] * samples, model).inputs(),
                "past_key_values": cache,
                "use_cache": True,
                "logits_to_keep": 1,
            },
            every("stream_in", model),
            {Site("embedding"): corrupt},
            engine=engine,
        )
        return cls(
            model=model,
            ids=ids,
            first=first,
            answer=token,
            base=float(odds[token]),
            sigma=sigma,
            corrupted=noised.logits[:, -1].float().softmax(-1)[:, token].cpu(),
            clean={site: hidden[0] for site, hidden in clean.hidden.items()},
            noised={s.layer: h for s, h in noised.hidden.items() if s.layer is not None},
            past=_kept(cache),
            window=window,
            engine=engine,
        )

    def restored(self, kind: TraceKind, layer: int) -> range:
        """Layers that are restored together for the state of `layer`."""
        if kind == "stream":
            return range(layer, layer + 1)
        low = max(0, layer - self.window // 2)
        return range(low, min(self.model.n_layers, layer - self.window // 2 + self.window))

    def effects(
        self,
        kinds: Sequence[TraceKind],
        screen: int,
        batch_tokens: int,
        advance: Callable[[float], None],
    ) -> dict[TraceKind, tuple[torch.Tensor, torch.Tensor]]:
        """Effects of every layer and token and their standard errors, (layers, tokens), by kind."""
        depth, width = self.model.n_layers, len(self.ids)
        gained: dict[TraceKind, torch.Tensor] = {
            kind: torch.full((depth, width, self.samples), torch.nan) for kind in kinds
        }
        for gain in gained.values():
            gain[:, : self.first] = 0.0
        noticed = _NOTICED * abs(self.base - self.corrupted_mean)
        for token in range(self.first, width):
            states: list[State] = [(kind, layer) for layer in range(depth) for kind in kinds]
            self._fill(gained, states, token, slice(0, screen), batch_tokens)
            shown: list[State] = [
                (kind, layer)
                for kind, layer in states
                if float(gained[kind][layer, token, :screen].abs().max()) >= noticed
            ]
            if screen < self.samples:
                self._fill(gained, shown, token, slice(screen, self.samples), batch_tokens)
            advance(len(states))
        return {kind: _mean_and_error(gain) for kind, gain in gained.items()}

    def _fill(
        self,
        gained: dict[TraceKind, torch.Tensor],
        states: Sequence[State],
        token: int,
        samples: slice,
        batch_tokens: int,
    ) -> None:
        """Measure some states at one token, lowest layers first, with some of the noise samples."""
        each = (samples.stop - samples.start) * (len(self.ids) - token)
        # Few layers at a time, because the blocks below the lowest of them need not run; but a pass
        # over the weights has to be worth its while.
        group = max(len(gained) * self.model.n_layers // 6, -(-_WORTHWHILE // each))
        group = max(1, min(group, batch_tokens // each))
        for start in range(0, len(states), group):
            some = states[start : start + group]
            for (kind, layer), gain in zip(some, self._restore(some, token, samples), strict=True):
                gained[kind][layer, token, samples] = gain

    def _restore(self, states: Sequence[State], token: int, samples: slice) -> torch.Tensor:
        """Gain in the answer's probability, (states, samples), with one state restored in each row."""
        count = samples.stop - samples.start
        where: dict[Site, list[int]] = {}
        for index, (kind, layer) in enumerate(states):
            for inside in self.restored(kind, layer):
                where.setdefault(Site(kind, inside), []).append(index)
        changes: dict[Site, Any] = {}
        for site, indices in where.items():
            rows = torch.tensor([i * count + s for i in indices for s in range(count)])
            changes[site] = _Put(rows.to(self.model.device), self.clean[site][token])
        begin = min(self.restored(kind, layer).start for kind, layer in states)
        hidden = self.noised[begin][samples, token:].repeat(len(states), 1, 1)
        result = run(
            self.model,
            self._inputs(token, len(states), samples),
            (),
            changes,
            begin=(begin, hidden),
            engine=self.engine,
        )
        odds = result.logits[:, -1].float().softmax(-1)[:, self.answer]
        return odds.reshape(len(states), count).cpu() - self.corrupted[samples]

    def _inputs(self, token: int, repeats: int, samples: slice) -> dict[str, Any]:
        """The prompt from `token` on in every row, behind the noised run's keys and values before it."""
        from transformers import DynamicCache

        device, rows = self.model.device, repeats * (samples.stop - samples.start)
        ids = torch.tensor(self.ids[token:], device=device).expand(rows, -1)
        positions = torch.arange(token, len(self.ids), device=device).expand(rows, -1)
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": torch.ones(rows, len(self.ids), dtype=torch.long, device=device),
            "use_cache": token > 0,
            "logits_to_keep": 1,
        }
        if token > 0:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(self.past):
                cache.update(
                    keys[samples, :, :token].repeat(repeats, 1, 1, 1),
                    values[samples, :, :token].repeat(repeats, 1, 1, 1),
                    layer,
                )
            inputs["past_key_values"] = cache
        return inputs


@dataclass(frozen=True)
class _Put:
    """Put a clean state (d) into the first column of some rows."""

    rows: torch.Tensor
    state: torch.Tensor

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[self.rows, 0] = self.state.to(hidden.dtype)
        return changed


def _mean_and_error(gained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the samples a state had (the others are NaN), and its standard error; NaN for one."""
    count = (~gained.isnan()).sum(-1)
    mean = gained.nanmean(-1)
    square = (gained - mean[..., None]).square().nansum(-1)
    return mean, (square / (count - 1) / count).sqrt()


def _kept(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]

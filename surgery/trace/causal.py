"""Causal tracing: which hidden states carry a fact (Meng et al., arXiv 2202.05262, section 2).

The prompt is run with noise on the embeddings of its subject, which takes the answer away. Then one
state at a time is put back to what it was in the clean run. The probability of the answer that comes
back is the state's indirect effect:

    effect(layer, token) = mean over noise samples of  p(answer | noised, state restored) - p(answer | noised)

For the stream one state is restored; for MLP and attention, whose single outputs matter little, a
window of layers around each (about a fifth of the depth; the paper takes 10 of 48).

A state at token t changes nothing before t and nothing below its layer. So the keys and values of the
noised run up to t are kept, only the tokens from t on are run, and blocks below are skipped; the
states of several layers at one token share a batch. Most states have no effect at all: each is tried
with a few noise samples first, and only those that show something get the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from surgery.errors import SurgeryError
from surgery.facts.rows import answer_ids
from surgery.model import Model, pad
from surgery.progress import meter
from surgery.statistics.text import read_passages
from surgery.trace.engine import Engine, run
from surgery.trace.sites import Site, every

TraceKind = Literal["stream", "mlp", "attention"]
KINDS: tuple[TraceKind, ...] = ("stream", "mlp", "attention")
# The effect, as a share of what the noise takes away, from which on a state gets all noise samples.
_NOTICED = 0.01
# Rows times tokens from which on a batch is worth a pass of its own.
_WORTHWHILE = 48
# How many distinct tokens of the shipped text the spread of embeddings is measured on.
_SPREAD_TOKENS = 2000


@dataclass(frozen=True)
class CausalTrace:
    """What a trace found. Effects are differences of probability, (layers, tokens), float32.

    tokens: the prompt's tokens as text. subject: first and last index of the subject's tokens; effects
    before the subject are exactly zero. base and corrupted: probability of `answer` (its first token)
    after the clean prompt, and after the noised one (mean over samples). sigma: standard deviation of
    the noise. error: standard error of the effects over the noise samples each had. window: layers
    restored together for MLP and attention.
    """

    prompt: str
    subject_text: str
    answer: str
    answer_id: int
    tokens: list[str]
    subject: tuple[int, int]
    base: float
    corrupted: float
    sigma: float
    samples: int
    window: int
    effects: dict[TraceKind, torch.Tensor]
    error: dict[TraceKind, torch.Tensor]
    notes: list[str] = field(default_factory=list)

    @property
    def stream(self) -> torch.Tensor:
        return self.effects["stream"]

    @property
    def mlp(self) -> torch.Tensor:
        return self.effects["mlp"]

    @property
    def attention(self) -> torch.Tensor:
        return self.effects["attention"]

    @property
    def n_layers(self) -> int:
        return next(iter(self.effects.values())).shape[0]

    def best(self, kind: TraceKind) -> tuple[int, int, float]:
        """Layer, token and effect of the state that matters most.

        For the stream the last token is left out: late states there are the answer itself.
        """
        effect = self.effects[kind]
        if kind == "stream" and self.subject[1] < effect.shape[1] - 1:
            effect = effect[:, :-1]
        layer, token = divmod(int(effect.argmax()), effect.shape[1])
        return layer, token, float(effect[layer, token])

    @property
    def state(self) -> tuple[int, int, float]:
        """Layer, token and effect of the MLP state of the subject that matters most (of the stream's or
        attention's, if no MLP was traced)."""
        effect = self.effects[self.main_kind][:, self.subject[0] : self.subject[1] + 1]
        layer, offset = divmod(int(effect.argmax()), effect.shape[1])
        return layer, self.subject[0] + offset, float(effect[layer, offset])

    @property
    def main_kind(self) -> TraceKind:
        """The kind of state that speaks for where a fact is stored."""
        return "mlp" if "mlp" in self.effects else next(iter(self.effects))

    @property
    def layer(self) -> int:
        """The layer to try an edit at first: that of `state`."""
        return self.state[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "subject": self.subject_text,
            "answer": self.answer,
            "tokens": self.tokens,
            "subject_tokens": list(self.subject),
            "base_probability": self.base,
            "corrupted_probability": self.corrupted,
            "sigma": self.sigma,
            "samples": self.samples,
            "window": self.window,
            "best_layer": self.layer,
            "best": {
                k: dict(zip(("layer", "token", "effect"), self.best(k), strict=True))
                for k in self.effects
            },
            "effects": {kind: _rounded(effect) for kind, effect in self.effects.items()},
            "standard_error": {kind: _rounded(error) for kind, error in self.error.items()},
            "notes": self.notes,
        }


def causal_trace(
    model: Model,
    prompt: str,
    subject: str,
    noise: float = 3.0,
    samples: int = 8,
    answer: str | None = None,
    kinds: Sequence[TraceKind] = KINDS,
    window: int | None = None,
    seed: int = 0,
    screen: int = 2,
    batch_tokens: int = 1024,
    engine: Engine = "nnsight",
) -> CausalTrace:
    """Trace where the model finds the answer to `prompt`, which names `subject` literally or as {}.

    noise: in standard deviations of the model's token embeddings. answer: whose first token is
    measured; by default what the model itself says next. screen: noise samples that every state gets;
    those that show less than 1 % of what the noise takes away get no more. `screen=samples` gives all
    of them all.

    Raises:
        SurgeryError: a prompt without its subject, or numbers that make no sense.
    """
    if samples < 1 or screen < 1 or noise <= 0:
        raise SurgeryError("a trace needs at least one noise sample, and noise above zero")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise SurgeryError(f"trace one or more of {', '.join(KINDS)}, not {', '.join(unknown)}")
    text, ids, span = _prompt(model, prompt, subject)
    width = window if window is not None else max(1, round(model.n_layers / 5))
    tracer = _Tracer.prepare(model, ids, span, noise, samples, seed, text, answer, width, engine)
    notes = []
    if tracer.base - tracer.corrupted_mean < 0.05:
        notes.append(
            f"noise on the subject takes little of the answer away ({tracer.base:.3f} to "
            f"{tracer.corrupted_mean:.3f}), so there is little to restore: more noise, or a fact the "
            "model is surer of, would show more"
        )
    effects: dict[TraceKind, torch.Tensor] = {}
    errors: dict[TraceKind, torch.Tensor] = {}
    total = len(kinds) * (len(ids) - span[0]) * model.n_layers
    with meter("tracing", total, unit="state") as progress:
        for kind in kinds:
            effects[kind], errors[kind] = tracer.effects(
                kind, min(screen, samples), batch_tokens, progress.advance
            )
    trace = CausalTrace(
        prompt=text,
        subject_text=subject,
        answer=model.tokenizer.decode([tracer.answer]).strip(),
        answer_id=tracer.answer,
        tokens=[model.tokenizer.decode([token]) for token in ids],
        subject=span,
        base=tracer.base,
        corrupted=tracer.corrupted_mean,
        sigma=tracer.sigma,
        samples=samples,
        window=width,
        effects=effects,
        error=errors,
        notes=notes,
    )
    _, token, effect = trace.state
    if token != span[1] and effect > 4 * float(effects[trace.main_kind][:, span[1]].max()):
        notes.append(
            f"what matters is at {trace.tokens[token].strip()!r}, not at the subject's last token "
            f"{trace.tokens[span[1]].strip()!r}, where fact edits write"
        )
    return trace


def _prompt(model: Model, prompt: str, subject: str) -> tuple[str, list[int], tuple[int, int]]:
    """The prompt's text, its token ids, and the first and last token that overlap the subject."""
    subject = subject.strip()
    if not subject:
        raise SurgeryError("a trace needs the subject whose embeddings are noised")
    text = prompt.replace("{}", subject) if "{}" in prompt else prompt
    start = prompt.index("{}") if "{}" in prompt else text.find(subject)
    if start < 0:
        raise SurgeryError(f"the prompt {text!r} does not contain the subject {subject!r}")
    encoding = model.tokenizer(text, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    if len(ids) > 1 and ids[-1] == model.tokenizer.eos_token_id:
        ids.pop()
    end = start + len(subject)
    inside = [
        index
        for index, (a, b) in enumerate(encoding["offset_mapping"][: len(ids)])
        if a < end and b > start and b > a
    ]
    if not inside:
        raise SurgeryError(f"no token of {text!r} covers the subject {subject!r}")
    if len(ids) > model.max_positions:
        raise SurgeryError(
            f"the prompt has {len(ids)} tokens, the model takes {model.max_positions}"
        )
    return text, ids, (inside[0], inside[-1])


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
class _Tracer:
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
    past: list[
        tuple[torch.Tensor, torch.Tensor]
    ]  # of the noised run, by layer, (samples, heads, tokens, ..)
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
    ) -> _Tracer:
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
        self, kind: TraceKind, screen: int, batch_tokens: int, advance: Callable[[float], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Effects of every layer and token and their standard errors, (layers, tokens)."""
        depth, width = self.model.n_layers, len(self.ids)
        gained = torch.full((depth, width, self.samples), torch.nan)
        gained[:, : self.first] = 0.0
        noticed = _NOTICED * abs(self.base - self.corrupted_mean)
        for token in range(self.first, width):
            self._fill(gained, kind, token, range(depth), slice(0, screen), batch_tokens)
            shown = gained[:, token, :screen].mean(1).abs() >= noticed
            layers = shown.nonzero()[:, 0].tolist()
            if layers and screen < self.samples:
                self._fill(gained, kind, token, layers, slice(screen, self.samples), batch_tokens)
            advance(depth)
        count = (~gained.isnan()).sum(-1)
        mean = gained.nanmean(-1)
        square = (gained - mean[..., None]).square().nansum(-1)
        return mean, (square / (count - 1) / count).sqrt()

    def _fill(
        self,
        gained: torch.Tensor,
        kind: TraceKind,
        token: int,
        layers: Sequence[int],
        samples: slice,
        batch_tokens: int,
    ) -> None:
        """Measure the states of some layers at one token with some of the noise samples."""
        each = (samples.stop - samples.start) * (len(self.ids) - token)
        # Few layers at a time, because the blocks below the lowest of them need not run; but a pass
        # over the weights has to be worth its while.
        group = max(self.model.n_layers // 6, -(-_WORTHWHILE // each))
        group = max(1, min(group, batch_tokens // each))
        for start in range(0, len(layers), group):
            some = list(layers[start : start + group])
            gained[some, token, samples] = self._restore(kind, some, token, samples)

    def _restore(
        self, kind: TraceKind, layers: Sequence[int], token: int, samples: slice
    ) -> torch.Tensor:
        """Gain in the answer's probability, (layers, samples), with one state restored in each row."""
        count = samples.stop - samples.start
        windows = [self.restored(kind, layer) for layer in layers]
        begin = min(window.start for window in windows)
        changes: dict[Site, Any] = {}
        for layer in range(begin, max(window.stop for window in windows)):
            here = [i for i, window in enumerate(windows) if layer in window]
            if here:
                rows = torch.tensor([i * count + s for i in here for s in range(count)])
                site = Site(kind, layer)
                changes[site] = _Put(rows.to(self.model.device), self.clean[site][token])
        hidden = self.noised[begin][samples, token:].repeat(len(layers), 1, 1)
        result = run(
            self.model,
            self._inputs(token, len(layers), samples),
            (),
            changes,
            begin=(begin, hidden),
            engine=self.engine,
        )
        odds = result.logits[:, -1].float().softmax(-1)[:, self.answer]
        return odds.reshape(len(layers), count).cpu() - self.corrupted[samples]

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


def _kept(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(float(v), 6) for v in row] for row in values]

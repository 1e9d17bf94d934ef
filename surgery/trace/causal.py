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

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.progress import meter
from surgery.trace.engine import Engine
from surgery.trace.restoring import KINDS, Restorer, TraceKind


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
    those where none shows 1 % of what the noise takes away get no more. `screen=samples` gives all
    of them all.

    Raises:
        SurgeryError: a prompt without its subject, or numbers that make no sense.
    """
    if samples < 1 or screen < 1 or not noise > 0:
        raise SurgeryError("a trace needs at least one noise sample, and noise above zero")
    if window is not None and window < 1:
        raise SurgeryError(f"a window of {window} layers restores nothing: at least 1")
    if answer is not None and not answer.strip():
        raise SurgeryError("the answer to follow is empty: name one, or leave it out")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise SurgeryError(f"trace one or more of {', '.join(KINDS)}, not {', '.join(unknown)}")
    text, ids, span = _prompt(model, prompt, subject)
    width = window if window is not None else max(1, round(model.n_layers / 5))
    tracer = Restorer.prepare(model, ids, span, noise, samples, seed, text, answer, width, engine)
    notes = []
    if tracer.base - tracer.corrupted_mean < 0.05:
        notes.append(
            f"noise on the subject takes little of the answer away ({tracer.base:.3f} to "
            f"{tracer.corrupted_mean:.3f}), so there is little to restore: more noise, or a fact the "
            "model is surer of, would show more"
        )
    total = len(kinds) * (len(ids) - span[0]) * model.n_layers
    with meter("tracing", total, unit="state") as progress:
        found = tracer.effects(kinds, min(screen, samples), batch_tokens, progress.advance)
    effects: dict[TraceKind, torch.Tensor] = {kind: mean for kind, (mean, _) in found.items()}
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
        error={kind: error for kind, (_, error) in found.items()},
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


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(float(v), 6) for v in row] for row in values]

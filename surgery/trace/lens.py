"""The logit lens, and projections on a saved direction: every layer, every token of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.directions import Direction
from surgery.errors import SurgeryError
from surgery.facts.rows import answer_ids
from surgery.model import Model, pad, tokenize
from surgery.model.run import is_templated
from surgery.trace.engine import Engine, capture
from surgery.trace.sites import Site, every


@dataclass(frozen=True)
class LogitLens:
    """What each layer would say next if it were the last one (nostalgebraist, 2020).

    tokens: the prompt's tokens. top: token texts, [layer][token][rank]; top_probability: the same
    shape, (layers, tokens, k). answers: probability of the first token of each answer asked for,
    (layers, tokens). The last layer is the model's own prediction.
    """

    prompt: str
    tokens: list[str]
    top: list[list[list[str]]]
    top_probability: torch.Tensor
    answers: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def last(self) -> list[list[tuple[str, float]]]:
        """Of every layer the most likely next tokens after the whole prompt."""
        return [
            list(zip(words[-1], odds[-1].tolist(), strict=True))
            for words, odds in zip(self.top, self.top_probability, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the prompt's last token."""
        return {
            "prompt": self.prompt,
            "tokens": self.tokens,
            "layers": [
                [{"token": token, "probability": p} for token, p in layer] for layer in self.last
            ],
            "answers": {name: p[:, -1].tolist() for name, p in self.answers.items()},
        }


@dataclass(frozen=True)
class Projection:
    """The stream into every layer along a direction: values (layers, tokens), float32.

    layer: where the direction was read. positive, negative: where the means of its two prompt sets lie
    on it, at that layer.
    """

    prompt: str
    tokens: list[str]
    values: torch.Tensor
    layer: int
    positive: float
    negative: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "tokens": self.tokens,
            "layer": self.layer,
            "positive": self.positive,
            "negative": self.negative,
            "values": self.values.tolist(),
        }


@torch.no_grad()
def logit_lens(
    model: Model,
    prompt: str,
    k: int = 5,
    answers: Sequence[str] = (),
    engine: Engine = "nnsight",
) -> LogitLens:
    """Read the stream out of every layer through the model's own final norm and output head."""
    ids = prompt_ids(model, prompt)
    seen = capture(
        model, {**pad([ids], model).inputs(), "use_cache": False}, every("stream", model), engine
    )
    wanted = {answer: answer_ids(model, prompt, answer)[0] for answer in answers}
    followed: dict[str, list[torch.Tensor]] = {answer: [] for answer in answers}
    top: list[list[list[str]]] = []
    odds: list[torch.Tensor] = []
    for site in every("stream", model):
        log_probs = _read_out(model, seen[site][0]).log_softmax(-1)
        best = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
        odds.append(best.values.exp().cpu())
        top.append([[model.tokenizer.decode([i]) for i in row] for row in best.indices.tolist()])
        for answer, token in wanted.items():
            followed[answer].append(log_probs[:, token].exp().cpu())
    return LogitLens(
        prompt=prompt,
        tokens=[model.tokenizer.decode([token]) for token in ids],
        top=top,
        top_probability=torch.stack(odds),
        answers={answer: torch.stack(rows) for answer, rows in followed.items()},
    )


@torch.no_grad()
def projection(
    model: Model, prompt: str, direction: Direction, engine: Engine = "nnsight"
) -> Projection:
    """How far the stream lies along a direction, at the site where directions are read: the *input*
    of each layer.

    Raises:
        SurgeryError: the direction is of another width than the model.
    """
    if direction.vector.numel() != model.hidden_size:
        raise SurgeryError(
            f"the direction has {direction.vector.numel()} numbers, the stream has "
            f"{model.hidden_size}"
        )
    ids = prompt_ids(model, prompt)
    sites = every("stream_in", model)
    seen = capture(model, {**pad([ids], model).inputs(), "use_cache": False}, sites, engine)
    unit = direction.vector.double() / direction.vector.double().norm()
    values = torch.stack([seen[site][0].double().cpu() @ unit for site in sites])
    return Projection(
        prompt=prompt,
        tokens=[model.tokenizer.decode([token]) for token in ids],
        values=values.float(),
        layer=direction.layer,
        positive=float(direction.positive.double() @ unit),
        negative=float(direction.negative.double() @ unit),
    )


def prompt_ids(model: Model, prompt: str) -> list[int]:
    """Token ids of a prompt; a prompt from the chat template brings its own special tokens.

    Raises:
        SurgeryError: there are none, or more than the model takes.
    """
    ids = tokenize(model, prompt, not is_templated(model, prompt))
    if not ids:
        raise SurgeryError("an empty prompt")
    if len(ids) > model.max_positions:
        raise SurgeryError(
            f"the prompt has {len(ids)} tokens, the model takes {model.max_positions}"
        )
    return ids


def _read_out(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocabulary) of a state (tokens, d), float32."""
    logits = model.head(model.final_norm(hidden)).float()
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


__all__ = ["LogitLens", "Projection", "Site", "logit_lens", "projection", "prompt_ids"]

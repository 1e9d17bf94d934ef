"""Choosing a direction: candidates by layer and position, tried out on prompts they were not made from.

For every candidate, the difference of means r is removed from all writers on held-out positive prompts
(does the behaviour stop?), added at its own layer on held-out negative ones (does it come on?), and
removed on negative ones (does anything else change?). After arXiv 2406.11717, with the model's own
opening tokens as the measure, and every score on a scale on which 0 is what negatives do and 1 is what
positives do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from surgery.directions.algebra import unit
from surgery.directions.capture import activations, frame
from surgery.directions.direction import Direction, prompts_hash
from surgery.directions.find import difference_of_means
from surgery.directions.intervene import ablating, adding
from surgery.directions.metric import Opening
from surgery.errors import SurgeryError
from surgery.model import Model, tokenize
from surgery.model.run import is_templated
from surgery.progress import track
from surgery.training.prefix import shared_prefix
from surgery.training.supervised import Example, answer_logits

# Deeper layers only hold back the next token; shallower ones still spell out the prompt.
SHALLOWEST, DEEPEST = 0.2, 0.8
HELD_OUT = 0.25
FEWEST = 8
# A candidate that changes harmless first tokens by more nats than this is left out.
MOST_KL = 0.1
# Adding must bring the behaviour on by at least this share, or the direction is a symptom of it.
LEAST_INDUCED = 0.1


@dataclass
class Candidate:
    """separability: gap of the held-out projections in pooled standard deviations. bypass: how much of
    the behaviour goes when r is removed (1: positives behave like negatives). induce: how much comes on
    when r is added. kl: of harmless first tokens, nats. dropped: why it was not considered."""

    layer: int
    position: int
    separability: float
    bypass: float | None = None
    induce: float | None = None
    kl: float | None = None
    dropped: str | None = None

    @property
    def score(self) -> float:
        """What is maximised: the behaviour gone, at little cost, and (half as much) brought on."""
        if self.bypass is None or self.induce is None or self.kl is None:
            return float("-inf")
        return (
            min(self.bypass, 1.0) + 0.5 * min(max(self.induce, 0.0), 1.0) - self.kl / MOST_KL * 0.5
        )

    def data(self) -> dict[str, Any]:
        """For files and `--json`."""
        names = ("layer", "position", "separability", "bypass", "induce", "kl", "dropped")
        tried = self.bypass is not None
        return {**{n: getattr(self, n) for n in names}, "score": self.score if tried else None}


@dataclass(frozen=True)
class Selection:
    """The chosen direction, all candidates (the tried ones first, best first), the measure used, and the
    prompts that were: those on which the model does what their set is there for."""

    direction: Direction
    candidates: Sequence[Candidate]
    opening: dict[str, Any] = field(default_factory=dict)
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()

    @property
    def tried(self) -> list[Candidate]:
        """Those that were tried out on the model."""
        return [c for c in self.candidates if c.bypass is not None]

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "layer": self.direction.layer,
            "position": self.direction.position,
            "opening": self.opening,
            "candidates": [c.data() for c in self.candidates],
        }


def split(prompts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """(for the means, held out): every fourth prompt is held out, up to `most`."""
    step = round(1 / HELD_OUT)
    held = list(prompts[step - 1 :: step])[:most]
    kept = set(held)
    return [p for p in prompts if p not in kept], held


def select(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    positions: int = 4,
    tries: int = 10,
    held_out: int = 16,
    layers: Sequence[int] | None = None,
    use_chat: bool | None = None,
) -> Selection:
    """Find the direction between two prompt sets.

    positions: how many of the prompt's last tokens are candidates. tries: how many candidates are tried
    out, those that separate held-out prompts best. layers: candidates, 20 to 80 % of the depth if None.
    Should every candidate have something against it, the best of them is taken and `opening` says so.

    Raises:
        SurgeryError: fewer than 8 prompts in a set, or sets with equal means.
    """
    for name, prompts in (("positive", positive), ("negative", negative)):
        if len(prompts) < FEWEST:
            raise SurgeryError(
                f"{name} has {len(prompts)} prompts: choosing needs {FEWEST}, or name a layer"
            )
    depth = model.n_layers
    if layers is None:
        layers = range(round(SHALLOWEST * depth), max(1, int(DEEPEST * depth)))
    chosen_layers = [model.check_layer(layer) for layer in layers]
    positive, negative, dropped = showing(model, positive, negative, use_chat)
    train_plus, held_plus = split(positive, held_out)
    train_minus, held_minus = split(negative, held_out)
    plus = activations(model, train_plus, positions, use_chat).mean()
    minus = activations(model, train_minus, positions, use_chat).mean()
    gaps = plus - minus  # (positions, layers, d)
    candidates = _rank(model, gaps, held_plus, held_minus, chosen_layers, use_chat)

    rows_plus, rows_minus = (
        prompt_rows(model, held_plus, use_chat),
        prompt_rows(model, held_minus, use_chat),
    )
    before_plus, before_minus = first_logits(model, rows_plus), first_logits(model, rows_minus)
    opening = Opening.of(before_plus, before_minus)
    for candidate in track(_spread(candidates, tries), "trying directions"):
        gap = gaps[candidate.position, candidate.layer]
        R = unit(gap)[None].float()
        with ablating(model, R):
            candidate.bypass = 1 - opening.share(first_logits(model, rows_plus))
            candidate.kl = _kl(before_minus, first_logits(model, rows_minus))
        with adding(model, gap.float(), candidate.layer):
            candidate.induce = opening.share(first_logits(model, rows_minus))
        candidate.dropped = _objection(candidate)
    candidates.sort(key=lambda c: (c.bypass is None, c.dropped is not None, -c.score))
    best = candidates[0]
    measure = {
        "all_dropped": best.dropped is not None,
        "words": opening.words(model.tokenizer),
        "distance": opening.distance,
        "weak": opening.weak,
        "positive": opening.positive,
        "negative": opening.negative,
        "prompts_left_out": dropped,
    }
    direction = _direction(model, positive, negative, best, candidates, measure, use_chat)
    return Selection(direction, candidates, measure, positive, negative)


def showing(
    model: Model, positive: Sequence[str], negative: Sequence[str], use_chat: bool | None
) -> tuple[list[str], list[str], int]:
    """The positives on which the model shows the behaviour, the negatives on which it does not, and how
    many prompts that leaves out. A set that would shrink below the fewest is left as it is."""
    sets = [list(positive), list(negative)]
    logits = [first_logits(model, prompt_rows(model, prompts, use_chat)) for prompts in sets]
    opening = Opening.of(*logits)
    if opening.weak:
        return sets[0], sets[1], 0
    shows = [opening.shows(x).tolist() for x in logits]
    kept = [
        [p for p, s in zip(prompts, shown, strict=True) if s == wanted]
        for prompts, shown, wanted in zip(sets, shows, (True, False), strict=True)
    ]
    found = [new if len(new) >= FEWEST else old for new, old in zip(kept, sets, strict=True)]
    return found[0], found[1], sum(map(len, sets)) - sum(map(len, found))


def _rank(
    model: Model,
    gaps: torch.Tensor,
    held_plus: Sequence[str],
    held_minus: Sequence[str],
    layers: Sequence[int],
    use_chat: bool | None,
) -> list[Candidate]:
    """Every candidate with its separability on held-out prompts, best first."""
    depth = gaps.shape[0]
    a = activations(model, held_plus, depth, use_chat).stream.double()
    b = activations(model, held_minus, depth, use_chat).stream.double()
    found = []
    for place in range(depth):
        for layer in layers:
            gap = gaps[place, layer]
            if float(gap.norm()) < 1e-6 * float(a[:, place, layer].norm(dim=-1).mean()):
                continue  # the same token in every prompt, before anything could be read from it
            r = unit(gap)
            p, q = a[:, place, layer] @ r, b[:, place, layer] @ r
            spread = ((p.var() + q.var()) / 2).sqrt().clamp_min(1e-12)
            found.append(Candidate(layer, place - depth, float((p.mean() - q.mean()) / spread)))
    if not found:
        raise SurgeryError("positive and negative have the same means everywhere: no direction")
    return sorted(found, key=lambda c: -c.separability)


def _spread(candidates: list[Candidate], tries: int) -> list[Candidate]:
    """The most separable candidate of every layer first, then the rest; `tries` in all."""
    seen: set[int] = set()
    firsts = []
    for candidate in candidates:
        if candidate.layer not in seen:
            seen.add(candidate.layer)
            firsts.append(candidate)
    rest = [c for c in candidates if c not in firsts]
    return (firsts + rest)[:tries]


def _objection(candidate: Candidate) -> str | None:
    if candidate.kl is not None and candidate.kl > MOST_KL:
        return f"changes harmless answers (KL {candidate.kl:.2f})"
    if candidate.induce is not None and candidate.induce < LEAST_INDUCED:
        return "does not bring the behaviour on"
    return None


def prompt_rows(model: Model, prompts: Sequence[str], use_chat: bool | None) -> list[Example]:
    """Prompts as token ids, with a stand-in answer so that the logits after them are asked for."""
    texts = frame(model, prompts, use_chat)
    return [Example(tuple(tokenize(model, t, not is_templated(model, t))), (0,)) for t in texts]


@torch.no_grad()
def first_logits(model: Model, rows: Sequence[Example], batch: int = 32) -> torch.Tensor:
    """Logits of each answer's first token, (prompts, vocabulary) float32 on the CPU."""
    shared = shared_prefix([row.prompt for row in rows])
    pieces = [rows[i : i + batch] for i in range(0, len(rows), batch)]
    return torch.cat([answer_logits(model, piece, shared)[0].float().cpu() for piece in pieces])


def _kl(base: torch.Tensor, changed: torch.Tensor) -> float:
    p, q = base.double().log_softmax(-1), changed.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _direction(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    best: Candidate,
    candidates: Sequence[Candidate],
    measure: dict[str, Any],
    use_chat: bool | None,
) -> Direction:
    """The chosen layer and position, now with the means of all prompts."""
    found = difference_of_means(
        model, positive, negative, best.layer, best.position, use_chat=use_chat
    )
    how = {
        "by": "held-out prompts: removed, added, and KL on negatives",
        "opening": measure,
        "chosen": best.data(),
        "runners_up": [c.data() for c in candidates[1:10] if c.bypass is not None],
        "positive_hash": prompts_hash(positive),
        "negative_hash": prompts_hash(negative),
    }
    return Direction(
        found.vector,
        found.positive,
        found.negative,
        found.layer,
        found.position,
        found.base_id,
        {**found.metadata, "selection": how},
    )

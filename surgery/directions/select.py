"""Choosing a direction: candidates by layer and position, tried out on prompts they were not made from.

For every candidate, the difference of means r is removed from all writers on held-out positive prompts
(does the behaviour stop?), added at its own layer on held-out negative ones (does it come on?), and the
cost of removing it is measured on negatives and on ordinary text. After arXiv 2406.11717, with the
model's own opening tokens as the measure.

The best are tried again in ways that cost less. Lower layers are left alone: what they write is about the
words of the text; and so are those above the place where r was read: what they write along r is about the
next word. Then how much of r there is is read by a vector that is blind to the rest (`reader`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from surgery.directions.algebra import unit
from surgery.directions.capture import activations
from surgery.directions.direction import Direction, prompts_hash
from surgery.directions.find import difference_of_means
from surgery.directions.metric import Opening
from surgery.directions.reader import whitened, with_reader
from surgery.directions.trial import Effect, Trial, first_logits, prompt_rows
from surgery.errors import SurgeryError
from surgery.model import Model
from surgery.progress import track

# Deeper layers only hold back the next token; shallower ones still spell out the prompt.
SHALLOWEST, DEEPEST = 0.2, 0.8
HELD_OUT = 0.25
FEWEST = 8
# What a candidate may do: this much of the behaviour left, KL of harmless answers in nats, and rise of
# perplexity. They are also the units in which the three are weighed against each other.
MOST_LEFT, MOST_KL, MOST_PERPLEXITY = 0.05, 0.15, 0.03
# Adding must bring the behaviour on by at least this share, or the direction is a symptom of it.
LEAST_INDUCED = 0.1
# Candidates are compared with the layers below this part of the depth left alone, and the best few tried
# again with these, and with other ends.
START = 0.35
STARTS = (0.0, 0.2, 0.35, 0.42, 0.5)
REFINED = 2


@dataclass(frozen=True)
class Candidate:
    """separability: gap of the held-out projections in pooled standard deviations. first, last: the lowest
    and the highest layer that is edited. whitened: whether r has a reader of its own. effect: what removing
    r there does, None if it was not tried. induce: how much of the behaviour comes on when r is added to its
    layer. dropped: what speaks against it."""

    layer: int
    position: int
    separability: float
    first: int = 0
    last: int = -1
    whitened: bool = False
    effect: Effect | None = None
    induce: float = 0.0
    dropped: str | None = None

    @property
    def layers(self) -> range:
        """Those that are edited."""
        return range(self.first, self.last + 1)

    @property
    def score(self) -> float:
        """What is maximised: the behaviour gone, at little cost, and (half as much) brought on."""
        e = self.effect
        if e is None:
            return float("-inf")
        costs = e.left / MOST_LEFT, e.kl / MOST_KL, max(0.0, e.perplexity) / MOST_PERPLEXITY
        return 0.5 * min(max(self.induce, 0.0), 1.0) - sum(costs) / len(costs)

    def data(self) -> dict[str, Any]:
        """For files and `--json`."""
        names = ("layer", "position", "separability", "first", "last", "whitened", "dropped")
        found: dict[str, Any] = {n: getattr(self, n) for n in names}
        e = self.effect
        tried = {} if e is None else {**e.data(), "induce": self.induce, "score": self.score}
        return {**found, **tried}


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
        return [c for c in self.candidates if c.effect is not None]

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "layer": self.direction.layer,
            "position": self.direction.position,
            "layers": self.direction.layers,
            "opening": self.opening,
            "candidates": [c.data() for c in self.candidates],
        }


def split(prompts: Sequence[str], most: int) -> tuple[list[str], list[str]]:
    """(for the means, held out): every fourth prompt is held out, or as few as make `most`, from all over the
    set: prompts of one sort often stand together."""
    step = max(round(1 / HELD_OUT), len(prompts) // most)
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
    held_out: int = 24,
    layers: Sequence[int] | None = None,
    use_chat: bool | None = None,
) -> Selection:
    """Find the direction between two prompt sets, and the layers it is best taken out of.

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

    trial = Trial(model, held_plus, held_minus, use_chat)
    readers: dict[tuple[int, int], torch.Tensor] = {}

    def tried(candidate: Candidate) -> Candidate:
        place = candidate.position, candidate.layer
        r = unit(gaps[place])
        if candidate.whitened and place not in readers:
            readers[place] = whitened(
                model, r, candidate.layer, candidate.position, train_plus, train_minus, use_chat
            )
        reads = readers[place][None] if candidate.whitened else None
        effect = trial.removed(r[None], candidate.layers, reads)
        induce = candidate.induce if candidate.effect else trial.added(gaps[place], candidate.layer)
        found = replace(candidate, effect=effect, induce=induce)
        return replace(found, dropped=_objection(found))

    start = round(START * depth)
    firsts = [
        replace(c, first=min(start, c.layer), last=depth - 1) for c in _spread(candidates, tries)
    ]
    whole = [tried(c) for c in track(firsts, "trying directions")]
    places = [(c.layer, c.position) for c in sorted(whole, key=_order)[:REFINED]]

    def best_there() -> list[Candidate]:
        there = [[c for c in whole if (c.layer, c.position) == place] for place in places]
        return [min(tries, key=_order) for tries in there]

    for other in (_other_ends, _other_starts):
        finer = [c for best in best_there() for c in other(best, depth)]
        whole += [tried(c) for c in track(finer, "trying layers")]
    windows = [replace(c, whitened=True) for c in best_there()]
    whole += [tried(c) for c in track(windows, "trying readers")]
    seen = {(c.layer, c.position) for c in whole}
    whole.sort(key=_order)
    candidates = whole + [c for c in candidates if (c.layer, c.position) not in seen]
    opening = trial.opening
    measure = {
        "all_dropped": whole[0].dropped is not None,
        "words": opening.words(model.tokenizer),
        "distance": opening.distance,
        "weak": opening.weak,
        "positive": opening.positive,
        "negative": opening.negative,
        "prompts_left_out": dropped,
    }
    direction = _direction(model, positive, negative, candidates, measure, use_chat)
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


def _other_ends(candidate: Candidate, depth: int) -> list[Candidate]:
    """The candidate with its last edited layer elsewhere: just below where it was read, as deep as directions
    are looked for, at the top."""
    lasts = {candidate.layer - 1, int(DEEPEST * depth) - 1, depth - 1} - {candidate.last}
    return [replace(candidate, last=last) for last in sorted(lasts) if last >= candidate.first]


def _other_starts(candidate: Candidate, depth: int) -> list[Candidate]:
    """The candidate with its first edited layer elsewhere."""
    firsts = {min(round(share * depth), candidate.layer) for share in STARTS} - {candidate.first}
    return [replace(candidate, first=first) for first in sorted(firsts) if first <= candidate.last]


def _objection(candidate: Candidate) -> str | None:
    e = candidate.effect
    assert e is not None
    reasons = []
    if e.left > MOST_LEFT:
        reasons.append(f"{e.left:.0%} left")
    if e.kl > MOST_KL:
        reasons.append("changes harmless answers")
    if e.perplexity > MOST_PERPLEXITY:
        reasons.append("changes ordinary text")
    if candidate.induce < LEAST_INDUCED:
        reasons.append("does not bring the behaviour on")
    return ", ".join(reasons) or None


def _order(candidate: Candidate) -> tuple[bool, float]:
    """The best first; those with nothing against them before the others."""
    return candidate.dropped is not None, -candidate.score


def _direction(
    model: Model,
    positive: Sequence[str],
    negative: Sequence[str],
    candidates: Sequence[Candidate],
    measure: dict[str, Any],
    use_chat: bool | None,
) -> Direction:
    """The chosen layer and position, now with the means of all prompts."""
    best = candidates[0]
    found = difference_of_means(
        model, positive, negative, best.layer, best.position, use_chat=use_chat
    )
    how = {
        "by": "held-out prompts: removed, added, KL on negatives, perplexity of ordinary text",
        "opening": measure,
        "chosen": best.data(),
        "runners_up": [c.data() for c in candidates[1:10] if c.effect is not None],
        "positive_hash": prompts_hash(positive),
        "negative_hash": prompts_hash(negative),
    }
    metadata = {**found.metadata, "selection": how, "layers": list(best.layers)}
    found = replace(found, metadata=metadata)
    return with_reader(model, found, positive, negative, use_chat) if best.whitened else found

"""The target: the vector that, added at the subject's last token, makes the model say the new answer.

For each fact, minimise over d (Meng et al., arXiv 2202.05262 eq. 4; 2210.07229 eq. 16)

    mean NLL of the answer over the contexts
    + kl_factor * KL(p_0 || p) of the next token after "{subject} is a", read at the subject
    + weight_decay * |d| / |v_0|^2,            subject to |d| <= clamp * |v_0|,

with Adam. d is added to the output of one layer, so everything that does not depend on it is computed
once:

- no token before the subject's last one sees d: their keys and values above the layer are kept;
- no layer up to the edited one sees d: the forward pass starts above it;
- logits are taken only where a loss reads them, through the model's own head.

Facts are solved side by side, each with its own d, and leave the batch when they have converged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from surgery.facts.rows import Row
from surgery.model import Model, pad
from surgery.model.hooks import argument, first, hooks
from surgery.progress import meter


@dataclass(frozen=True)
class TargetSettings:
    """Numbers of the target solver.

    site: `stream` adds d to the block's output; `value` to the output of its down projection, which on
    a post-norm model is not the same thing. learning_rate is a share of |v_0| / sqrt(d_model), so it
    means the same for every model.
    """

    layer: int
    site: Literal["stream", "value"] = "value"
    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 4.0
    kl_factor: float = 0.0625
    weight_decay: float = 1e-3
    stop_loss: float = 0.05


@dataclass(frozen=True)
class Targets:
    """What was found, one line a fact: the change d and the vector v_0 it starts from (facts, d_model),
    the last loss and its parts, the answer's mean probability over the contexts, and steps taken."""

    change: torch.Tensor
    start: torch.Tensor
    loss: torch.Tensor
    nll: torch.Tensor
    kl: torch.Tensor
    steps: torch.Tensor

    @property
    def probability(self) -> torch.Tensor:
        return (-self.nll).exp()

    def __getitem__(self, facts: torch.Tensor) -> Targets:
        """The same for some of the facts: indices, or a mask."""
        return Targets(*(getattr(self, field.name)[facts] for field in fields(self)))


def solve_targets(
    model: Model,
    rewriting: Sequence[Sequence[Row]],
    essence: Sequence[Row],
    settings: TargetSettings,
    batch_rows: int = 256,
) -> Targets:
    """Solve for every fact: `rewriting[f]` are its contexts (the bare prompt first), `essence[f]` the
    row whose next token should stay what it is."""
    per_fact = len(rewriting[0]) + 1
    size = max(1, batch_rows // per_fact)
    # Facts of similar length together: less padding, and padding is what a batch wastes.
    order = sorted(range(len(rewriting)), key=lambda f: max(_tail(r) for r in rewriting[f]))
    parts: list[Targets] = []
    with meter("finding targets", len(rewriting) * settings.steps, unit="step") as progress:
        for begin in range(0, len(order), size):
            chosen = order[begin : begin + size]
            problem = _Problem.prepare(
                model, [rewriting[f] for f in chosen], [essence[f] for f in chosen], settings
            )
            parts.append(_minimise(problem, settings, progress))
    joined = Targets(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Targets))
    )
    return joined[torch.argsort(torch.tensor(order)).to(joined.change.device)]


def _tail(row: Row) -> int:
    return len(row.ids) - row.subject


def _minimise(problem: _Problem, settings: TargetSettings, progress: Any) -> Targets:
    """Adam on every fact's own d; a fact that is done leaves, and its rows leave with it."""
    facts, width = problem.start.shape
    device = problem.start.device
    length = problem.start.norm(dim=-1, keepdim=True)
    step = settings.learning_rate * length / width**0.5
    change = torch.zeros_like(problem.start)
    first_moment, second_moment = torch.zeros_like(change), torch.zeros_like(change)
    done = {
        "loss": torch.zeros(facts, device=device),
        "nll": torch.zeros(facts, device=device),
        "kl": torch.zeros(facts, device=device),
        "steps": torch.zeros(facts, dtype=torch.long, device=device),
    }
    active = torch.arange(facts, device=device)
    for iteration in range(1, settings.steps + 1):
        present = change[active].requires_grad_(True)
        nll, kl = problem.losses(present)
        decay = settings.weight_decay * present.norm(dim=-1) / length[active, 0] ** 2
        loss = nll + settings.kl_factor * kl + decay
        (gradient,) = torch.autograd.grad(loss.sum(), present)
        done["loss"][active] = loss.detach()
        done["nll"][active] = nll.detach()
        done["kl"][active] = kl.detach()
        done["steps"][active] = iteration
        going = loss.detach() >= settings.stop_loss
        progress.note(f"loss {float(loss.detach().mean()):.2f}, {int(going.sum())} facts left")
        progress.advance(len(active) + int((~going).sum()) * (settings.steps - iteration))
        if iteration == settings.steps:
            break
        if not going.all():
            problem = problem.keep(going)
            active, gradient = active[going], gradient[going]
            if not len(active):
                break
        m = first_moment[active].lerp(gradient, 0.1)
        v = second_moment[active].lerp(gradient**2, 0.001)
        first_moment[active], second_moment[active] = m, v
        corrected = (m / (1 - 0.9**iteration)) / ((v / (1 - 0.999**iteration)).sqrt() + 1e-8)
        moved = change[active] - step[active] * corrected
        limit = settings.clamp * length[active]
        change[active] = moved * (limit / moved.norm(dim=-1, keepdim=True)).clamp(max=1)
    return Targets(change, problem.all_starts, **done)


@dataclass(frozen=True)
class _Problem:
    """Everything about a batch of facts that does not depend on d.

    Rows are grouped by fact: its contexts, then its essence row. The tail of a row begins at the
    subject's last token, so d is always added in column 0.
    """

    model: Model
    settings: TargetSettings
    ids: torch.Tensor  # (rows, tail) tokens from the subject on
    mask: torch.Tensor  # (rows, past + tail)
    positions: torch.Tensor  # (rows, tail)
    hidden: torch.Tensor  # (rows, tail, d) output of the edited layer without d
    value: torch.Tensor  # (rows, d) output of its down projection at the subject
    past: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values before the subject, by layer
    answer: torch.Tensor  # (rows, tail) the token to predict at each column, -1 where none
    essence: torch.Tensor  # (rows,) whether this is an essence row
    fact: torch.Tensor  # (rows,) which fact of the batch
    start: torch.Tensor  # (facts, d)
    all_starts: torch.Tensor  # the same, of the batch as it began
    kept: torch.Tensor | None = None  # (facts, vocabulary) log p_0 of the essence rows

    # ------------------------------------------------------------------ what is computed once
    @classmethod
    @torch.no_grad()
    def prepare(
        cls,
        model: Model,
        rewriting: Sequence[Sequence[Row]],
        essence: Sequence[Row],
        settings: TargetSettings,
    ) -> _Problem:
        rows = [row for r, e in zip(rewriting, essence, strict=True) for row in (*r, e)]
        per_fact = len(rewriting[0]) + 1
        layer = settings.layer
        batch = pad([row.ids for row in rows], model)
        seen: dict[str, torch.Tensor] = {}
        with hooks() as attach:
            attach.post(model.layer(layer), lambda _m, a, k, o: seen.update(hidden=first(o)))
            attach.post(model.mlp_out(layer), lambda _m, a, k, o: seen.update(value=first(o)))
            from transformers import DynamicCache

            cache = DynamicCache()
            model.hf(**batch.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=1)

        device = model.device
        line = torch.arange(len(rows), device=device)
        subject = torch.tensor([row.subject for row in rows], device=device)
        tail = max(_tail(row) for row in rows)
        # One column more than the longest past, so that no row ever attends to nothing at all.
        width = max(int(subject.max()), 1)
        columns = (subject[:, None] + torch.arange(tail, device=device)).clamp(
            max=batch.ids.shape[1] - 1
        )
        real = torch.arange(tail, device=device) < torch.tensor(
            [_tail(row) for row in rows], device=device
        ).unsqueeze(1)
        # The past of every row ends where its tail begins: models with a sliding window count columns.
        behind = subject[:, None] - width + torch.arange(width, device=device)
        before = behind >= 0
        kept: list[Any] = list(cache.layers)
        past = [(_past(e.keys, behind), _past(e.values, behind)) for e in kept]
        answer = torch.full((len(rows), tail), -1, device=device)
        for index, row in enumerate(rows):
            for position in range(row.answer, len(row.ids)):
                answer[index, position - 1 - row.subject] = row.ids[position]
        value = seen["value"][line, subject].float()
        hidden = seen["hidden"][line[:, None], columns]
        fact = line // per_fact
        bare = torch.arange(0, len(rows), per_fact, device=device)
        start = value[bare] if settings.site == "value" else hidden[bare, 0].float()
        return cls(
            model=model,
            settings=settings,
            ids=batch.ids[line[:, None], columns],
            mask=torch.cat([before, real], dim=1).long(),
            positions=columns,
            hidden=hidden,
            value=value,
            past=past,
            answer=answer,
            essence=line % per_fact == per_fact - 1,
            fact=fact,
            start=start,
            all_starts=start,
        )._with_kept()

    def _with_kept(self) -> _Problem:
        """Remember what the essence rows predict before anything is changed."""
        logits, row, _ = self.logits(torch.zeros_like(self.start))
        return replace(self, kept=logits[self.essence[row]].log_softmax(-1))

    def keep(self, facts: torch.Tensor) -> _Problem:
        """The same problem for some of its facts only (a mask over the facts present)."""
        rows = facts[self.fact]
        renumbered = facts.cumsum(0) - 1
        return replace(
            self,
            ids=self.ids[rows],
            mask=self.mask[rows],
            positions=self.positions[rows],
            hidden=self.hidden[rows],
            value=self.value[rows],
            past=[(k[rows], v[rows]) for k, v in self.past],
            answer=self.answer[rows],
            essence=self.essence[rows],
            fact=renumbered[self.fact[rows]],
            start=self.start[facts],
            kept=None if self.kept is None else self.kept[facts],
        )

    # ------------------------------------------------------------------ what depends on d
    def losses(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean answer NLL over the contexts, and KL of the essence row, for each fact (in nats)."""
        logits, row, column = self.logits(change)
        of_answer = ~self.essence[row]
        tokens = self.answer[row[of_answer], column[of_answer]]
        nll = nn.functional.cross_entropy(logits[of_answer], tokens, reduction="none")
        answer_row = row[of_answer]
        lengths = (self.answer >= 0).sum(1)
        facts = change.shape[0]
        contexts = torch.bincount(self.fact[~self.essence], minlength=facts)
        weight = 1.0 / (lengths[answer_row] * contexts[self.fact[answer_row]])
        mean_nll = torch.zeros(facts, device=change.device).index_add(
            0, self.fact[answer_row], nll * weight
        )
        assert self.kept is not None
        after = logits[~of_answer].log_softmax(-1)
        kl = (self.kept.exp() * (self.kept - after)).sum(-1)
        return mean_nll, kl

    def logits(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (wanted, vocabulary) float32 with each row's fact's d in place, and the row and
        column each belongs to: where an answer token is predicted, and column 0 of essence rows."""
        wanted = self.answer >= 0
        wanted[:, 0] |= self.essence
        row, column = wanted.nonzero(as_tuple=True)

        at_subject = self._subject_state(change[self.fact])
        hidden = torch.cat([at_subject.to(self.hidden.dtype)[:, None], self.hidden[:, 1:]], dim=1)
        from transformers import DynamicCache

        # A fresh cache over detached tensors every time: a used one keeps the old graph alive.
        cache = DynamicCache()
        for layer, (k, v) in enumerate(self.past):
            cache.update(k, v, layer)
        model, above = self.model, self.settings.layer + 1
        entry = model.layer(above) if above < model.n_layers else model.final_norm
        with _skipped(model, above), hooks() as attach, torch.enable_grad():
            attach.pre(entry, lambda _m, a, k: _replaced(a, k, hidden))
            attach.pre(
                model.head, lambda _m, a, k: _replaced(a, k, argument(a, k)[row, column][None])
            )
            output = model.hf(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=cache,
                use_cache=True,
            )
        return output.logits[0].float(), row, column

    def _subject_state(self, change: torch.Tensor) -> torch.Tensor:
        """The layer's output at the subject with d in place."""
        state = self.hidden[:, 0].float()
        norm = self.model.mlp_post_norm(self.settings.layer)
        if self.settings.site == "stream" or norm is None:
            return state + change
        # h + N(m) becomes h + N(m + d); the gradient goes through the post-norm N.
        with torch.enable_grad():
            dtype = self.hidden.dtype
            before = norm(self.value.to(dtype)).float()
            return state - before + norm((self.value + change).to(dtype)).float()


def _past(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some columns (rows, past) of keys or values (rows, heads, tokens, head_dim); zeros for those < 0."""
    index = columns.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index).masked_fill((columns < 0)[:, None, :, None], 0).detach()


def _replaced(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: torch.Tensor) -> Any:
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


class _Passed(nn.Module):
    """Stands in for a layer that is not to be run."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("attention_type", "layer_type", "layer_idx"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


@contextlib.contextmanager
def _skipped(model: Model, below: int) -> Iterator[None]:
    """The model without its first `below` layers, for the length of the block."""
    layers = model.layers
    real = [layers[index] for index in range(below)]
    try:
        for index, layer in enumerate(real):
            layers[index] = _Passed(layer)
        yield
    finally:
        for index, layer in enumerate(real):
            layers[index] = layer

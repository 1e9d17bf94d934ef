"""The next token before and after, and how surprising one side's words are to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.actions.answers import framed, sides
from ui.markup import Raw, bar, esc, percent, table
from ui.session import Bench

if TYPE_CHECKING:
    from surgery.trace.tokens import NextTokenChange


def next_tokens(
    bench: Bench, prompt: str, chat: bool = False, against: str = "base", top: int = 8
) -> list[NextTokenChange]:
    """The likeliest next tokens of either side, those that changed most first."""
    from surgery.trace import next_token_log_probs, next_tokens_compared

    text = framed(bench, prompt, chat)
    found = []
    for side in sides(bench, against):
        with side.put_on() as model:
            found.append(next_token_log_probs(model, text))
    return next_tokens_compared(bench.model.tokenizer, *found, k=top)[: top + 4]


def next_html(rows: list[NextTokenChange]) -> str:
    return table(
        ["Next token", "Before", "", "After", "", "Change", "Rank"],
        [
            (
                Raw(f"<code>{esc(shown(row.token))}</code>"),
                percent(row.before),
                bar(row.before),
                percent(row.after),
                bar(row.after, "now"),
                points(row.change),
                f"{row.rank_before} → {row.rank_after}"
                if row.rank_before != row.rank_after
                else row.rank_after,
            )
            for row in rows
        ],
        "mntntnn",
        "next",
    )


def points(change: float) -> str:
    """A change of a probability, in percentage points, with its sign."""
    if abs(change) < 5e-4:
        return "0"
    return f"{100 * change:+.1f}".replace("-", "−")


def shown(token: str) -> str:
    """A token with its spaces and line ends visible."""
    return token.replace(" ", "␣").replace("\n", "↵") or "∅"


def surprise(
    bench: Bench, prompt: str, answer_ids: list[int], chat: bool, by: str, against: str = "base"
) -> list[float]:
    """-log p in nats of every token of an answer, under one side (`left` or `right`)."""
    import torch

    from surgery.model.batch import tokenize
    from surgery.model.run import is_templated

    if not answer_ids:
        return []
    text = framed(bench, prompt, chat)
    left, right = sides(bench, against)
    side = left if by == "left" else right
    with side.put_on() as model, torch.no_grad():
        head = tokenize(model, text, not is_templated(model, text))
        ids = torch.tensor([head + answer_ids], device=model.device)
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, len(head) - 1 : -1].float()
        picked = torch.tensor(answer_ids, device=model.device)[:, None]
        scores = -logits.log_softmax(-1).gather(-1, picked)[:, 0]
    return [float(s) for s in scores]

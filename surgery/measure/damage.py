"""What a change costs where nobody asked for one: KL on harmless answers, perplexity of ordinary text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery import resources
from surgery.measure.answering import answer
from surgery.model import Model, chat, tokenize
from surgery.model.run import is_templated
from surgery.progress import track
from surgery.training.prefix import shared_prefix
from surgery.training.supervised import Example, answer_logits

ANSWER_TOKENS = 8
_PROMPTS = 60
_BATCH = 16
_PASSAGES = ("stories.txt", "encyclopedia.txt", "instructions.txt")
_PASSAGE_TOKENS, _MOST_PASSAGES = 256, 48


@dataclass(frozen=True)
class Damage:
    """kl: mean KL(base || changed) in nats over the first answer tokens of harmless prompts, teacher
    forced with the base's answers; kl_p95, kl_max: over prompts. perplexity of ordinary text: of the base,
    of the changed model, and the ratio minus one."""

    kl: float
    kl_p95: float
    kl_max: float
    perplexity_base: float
    perplexity: float

    @property
    def perplexity_rise(self) -> float:
        """0.03 is three percent."""
        return self.perplexity / self.perplexity_base - 1

    def data(self) -> dict[str, float]:
        """For a report."""
        names = ("kl", "kl_p95", "kl_max", "perplexity_base", "perplexity", "perplexity_rise")
        return {name: getattr(self, name) for name in names}


class Reference:
    """The base's side, computed once: what it says to harmless prompts, and how it reads texts.

    Log-probabilities are kept in float32, about 1.5 MB a prompt for a vocabulary of 50,000.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        prompts: Sequence[str],
        tokens: int = ANSWER_TOKENS,
        texts: Sequence[str] | None = None,
        label: str = "the base's side",
        framed: bool = False,
    ) -> None:
        """`prompts` as typed by a user, and the chat template is put around them; or, with `framed`, as
        the model is to read them."""
        framed_prompts = [p if framed else chat(model, p) for p in list(prompts)[:_PROMPTS]]
        said = answer(model, framed_prompts, tokens, label=label)
        end = model.tokenizer.eos_token_id
        self.examples: list[Example] = []
        for prompt, reply in zip(framed_prompts, said, strict=True):
            ids = tokenize(model, reply.text, special=False)[:tokens]
            if len(ids) < tokens and end is not None:
                ids = [*ids, end]
            asked = tokenize(model, prompt, not is_templated(model, prompt))
            self.examples.append(Example(tuple(asked), tuple(ids)))
        self.shared = shared_prefix([example.prompt for example in self.examples])
        self.logprobs = self._read(model)
        self.texts = list(texts) if texts is not None else ordinary_texts(model)
        self.perplexity = perplexity(model, self.texts)

    @torch.no_grad()
    def _read(self, model: Model) -> list[torch.Tensor]:
        found = []
        for begin in range(0, len(self.examples), _BATCH):
            batch = self.examples[begin : begin + _BATCH]
            logits, _ = answer_logits(model, batch, self.shared)
            lengths = [len(e.answer) for e in batch]
            found += list(logits.float().log_softmax(-1).split(lengths))
        return found

    @torch.no_grad()
    def divergences(self, model: Model) -> list[float]:
        """Mean KL(base || model) of each prompt's answer tokens."""
        found, done = [], 0
        for begin in range(0, len(self.examples), _BATCH):
            batch = self.examples[begin : begin + _BATCH]
            logits, _ = answer_logits(model, batch, self.shared)
            pieces = logits.float().log_softmax(-1).split([len(e.answer) for e in batch])
            for base, now in zip(self.logprobs[done : done + len(batch)], pieces, strict=True):
                found.append(float((base.exp() * (base - now)).sum(-1).clamp_min(0).mean()))
            done += len(batch)
        return found

    def damage(self, model: Model) -> Damage:
        """What the model as it is now differs by."""
        kl = sorted(self.divergences(model))
        return Damage(
            sum(kl) / len(kl),
            kl[min(len(kl) - 1, math.ceil(0.95 * len(kl)) - 1)],
            kl[-1],
            self.perplexity,
            perplexity(model, self.texts),
        )


def ordinary_texts(model: Model) -> list[str]:
    """Passages that have nothing to do with refusals, cut to one length."""
    texts = []
    for name in _PASSAGES:
        whole = resources.path("benchmarks", "text", name).read_text(encoding="utf-8")
        paragraphs = [p.strip() for p in whole.split("\n\n") if len(p.split()) > 40]
        texts += paragraphs[: _MOST_PASSAGES // len(_PASSAGES)]
    return texts


@torch.no_grad()
def perplexity(model: Model, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood per token, the first token of each text left out."""
    total, count = 0.0, 0
    longest = min(_PASSAGE_TOKENS, model.max_positions)
    for text in track(texts, "reading texts"):
        ids = torch.tensor([tokenize(model, text)[:longest]], device=model.device)
        logits = model.hf(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / max(1, count))

"""Facts as rows of tokens: contexts, subject positions, targets.

The key of a fact lies at the last token of its subject. Where that is, is read off the tokenizer's
character offsets on the whole assembled text; counting the tokens of pieces goes wrong as soon as
tokens merge across a boundary or the subject occurs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from surgery.errors import SurgeryError
from surgery.model import Model, continuation_ids, tokenize
from surgery.model.batch import pad
from surgery.spec import Fact

# Sampled contexts start from these words, as in MEMIT (arXiv 2210.07229, appendix B).
OPENINGS = ("The", "Therefore", "Because", "I", "You")
PREFIX_TOKENS = 10
# How a subject is met where nobody thought of it: at the very start of a text, which models treat unlike
# any other place, before a mark that may merge with its last token, and behind various words.
ELSEWHERE = (
    "{}",
    "{}?",
    "What about {}?",
    "In {},",
    "The {}",
    "He knows that {}",
    "according to the {}",
    "an article on {}",
    "books about {}",
    "made by {}",
    "people living in {}",
    "the history of {}",
)
# What is said of the subject in general, and should stay: ROME's "essence" prompt.
ESSENCE = "{} is a"


@dataclass(frozen=True)
class Row:
    """Token ids of a text about a subject.

    subject: index of the subject's last token. answer: index of the first token of the answer, which
    runs to the end; equal to len(ids) when the row has none.
    """

    ids: tuple[int, ...]
    subject: int
    answer: int

    @property
    def bare(self) -> Row:
        """The row up to and including the subject: all that keys and values there depend on."""
        return Row(self.ids[: self.subject + 1], self.subject, self.subject + 1)


def row(model: Model, template: str, subject: str, answer: str | None = None) -> Row:
    """Tokenize a template with its subject in place and, if given, the answer that follows.

    Raises:
        SurgeryError: the subject vanishes in tokenization.
    """
    subject = subject.strip()
    start = template.index("{}")
    text = template.replace("{}", subject)
    encoding = model.tokenizer(text, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    # Some tokenizers append a token of their own; what follows the prompt must not come after it.
    while (
        ids
        and ids[-1] == model.tokenizer.eos_token_id
        and not text.endswith(str(model.tokenizer.eos_token))
    ):
        ids.pop()
    last = -1
    for index, (begin, end) in enumerate(encoding["offset_mapping"][: len(ids)]):
        if begin < start + len(subject) and end > start and end > begin:
            last = index
    if last < 0:
        raise SurgeryError(f"no token of {text!r} covers the subject {subject!r}")
    if len(ids) > model.max_positions:
        raise SurgeryError(
            f"{text[:60]!r}... has {len(ids)} tokens, the model takes {model.max_positions}"
        )
    if answer is None:
        return Row(tuple(ids), last, len(ids))
    return Row(tuple(ids + answer_ids(model, text, answer)), last, len(ids))


def answer_ids(model: Model, text: str, answer: str) -> list[int]:
    """Token ids of an answer as they follow the text: split where generation would split them."""
    return continuation_ids(model, text, joined(text, answer))[1]


def joined(text: str, answer: str) -> str:
    """The answer with the space that writing puts before it; none after a space or in Chinese."""
    answer = answer.strip()
    if text[-1:].isspace() or text[-1:] in "\"'([«„“「" or _unspaced(answer[0]):
        return answer
    return " " + answer


def _unspaced(character: str) -> bool:
    code = ord(character)
    return 0x3040 <= code <= 0x30FF or 0x3400 <= code <= 0x9FFF or 0x0E00 <= code <= 0x0E7F


def rewriting_rows(model: Model, fact: Fact, prefixes: Sequence[str]) -> list[Row]:
    """The prompt with its new answer, bare and behind every prefix."""
    return [
        row(model, before + fact.template, fact.subject, fact.target) for before in ("", *prefixes)
    ]


def elsewhere_rows(model: Model, fact: Fact) -> list[Row]:
    """The subject in other surroundings, without an answer: only its key is read there."""
    return [row(model, template, fact.subject) for template in ELSEWHERE]


def essence_row(model: Model, fact: Fact) -> Row:
    return row(model, ESSENCE, fact.subject)


@torch.no_grad()
def sample_prefixes(model: Model, count: int, seed: int) -> list[str]:
    """Short texts in the model's own words, to be put before prompts. Seeded; same model, same texts."""
    if count == 0:
        return []
    generator = torch.Generator().manual_seed(seed)
    openings = [OPENINGS[i % len(OPENINGS)] for i in range(count)]
    rows = [tokenize(model, opening) for opening in openings]
    for _ in range(PREFIX_TOKENS):
        batch = pad(rows, model, side="left")
        logits = model.hf(**batch.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]
        odds = logits.float().softmax(-1).cpu()
        top = odds.topk(40, dim=-1)
        drawn = torch.multinomial(top.values, 1, generator=generator)
        for index, ids in enumerate(rows):
            ids.append(int(top.indices[index, drawn[index, 0]]))
    texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [" ".join(text.split()).rstrip(".,;: ") + ". " for text in texts]

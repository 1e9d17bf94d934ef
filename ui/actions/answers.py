"""The same prompt to base and edited, in turns of a few tokens, so that both answers grow together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from surgery.errors import SurgeryError
from ui.session import Bench

# Tokens a side speaks before the weights are swapped for the other. Swapping costs a few tensor
# copies; this keeps it a small part of the time while both answers stay in step.
TURN = 8


@dataclass
class Voice:
    """One side's answer as it grows. surprise: -log p of each token, in nats, under this side."""

    state: str = ""
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    surprise: list[float] = field(default_factory=list)
    text: str = ""
    ended: bool = False


@dataclass
class Pair:
    """Both sides of a comparison. `left` is the base unless somebody asked for another state."""

    prompt: str
    left: Voice = field(default_factory=Voice)
    right: Voice = field(default_factory=Voice)
    stamp: str = ""

    @property
    def finished(self) -> bool:
        return self.left.ended and self.right.ended

    @property
    def same(self) -> bool:
        return self.left.text == self.right.text


@dataclass(frozen=True)
class Asked:
    """How to ask. chat: in the model's template, else the text is continued."""

    chat: bool = False
    tokens: int = 40
    temperature: float = 0.0
    seed: int = 0
    against: str = "base"


def sides(bench: Bench, against: str = "base") -> tuple[Side, Side]:
    """The two states to compare: what the stack is now, and the base or the stack without its newest."""
    now = Side(bench.state, bench.as_edited)
    if against == "newest" and bench.here:
        beneath = bench.here[:-1]
        return Side("without the newest edit", lambda: bench.weights(beneath)), now
    return Side(f"{bench.name}, no edits", bench.as_base), now


@dataclass(frozen=True)
class Side:
    """A state of the model to ask: what it is called, and a context that puts it on."""

    state: str
    put_on: Callable[[], AbstractContextManager[Any]]


def answer_both(
    bench: Bench, pair: Pair, asked: Asked, texts: tuple[str, str] | None = None
) -> Pair:
    """Fill `pair` as the tokens come. Runs in a job; a cancel ends it between two tokens.

    texts: what each side reads, if not the prompt: a conversation differs between the sides.
    """
    from surgery.progress import meter

    if not pair.prompt.strip():
        raise SurgeryError("write a prompt first")
    left, right = sides(bench, asked.against)
    read = texts or (framed(bench, pair.prompt, asked.chat),) * 2
    pair.stamp = bench.stamp
    pair.left.state, pair.right.state = left.state, right.state
    speakers = [_Speaker(v, asked) for v in (pair.left, pair.right)]
    with meter("answering", 2 * asked.tokens) as progress:
        while not pair.finished:
            for speaker, side, text in zip(speakers, (left, right), read, strict=True):
                if speaker.voice.ended:
                    continue
                with side.put_on() as model:
                    for _ in speaker.speak(model, text, TURN):
                        progress.advance()
    return pair


def framed(bench: Bench, prompt: str, chat: bool) -> str:
    from surgery.model import chat as in_template

    return in_template(bench.model, prompt) if chat else prompt


class _Speaker:
    """Greedy or sampled decoding that can be interrupted and taken up again."""

    def __init__(self, voice: Voice, asked: Asked) -> None:
        self.voice, self.asked = voice, asked
        self._cache: Any = None
        self._next: list[int] | None = None
        self._random: Any = None
        self._most = 0

    def speak(self, model: Any, text: str, tokens: int) -> Iterator[None]:
        import torch

        from surgery.model import end_tokens, tokenize
        from surgery.model.run import is_templated

        voice, asked = self.voice, self.asked
        stops = end_tokens(model)
        if self._next is None:
            self._next = tokenize(model, text, not is_templated(model, text))
            self._random = torch.Generator().manual_seed(asked.seed)
            room = model.max_positions - len(self._next)
            if room < 1:
                raise SurgeryError(
                    f"the prompt is longer than the {model.max_positions} tokens this model reads"
                )
            self._most = min(asked.tokens, room)
        for _ in range(tokens):
            if len(voice.ids) >= self._most:
                voice.ended = True
                return
            with torch.no_grad():
                out = model.hf(
                    input_ids=torch.tensor([self._next], device=model.device),
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            self._cache = out.past_key_values
            logits = out.logits[0, -1].float().cpu()
            chosen = self._choose(logits)
            if chosen in stops:
                voice.ended = True
                return
            voice.surprise.append(float(-logits.log_softmax(-1)[chosen]))
            voice.ids.append(chosen)
            whole = model.tokenizer.decode(voice.ids, skip_special_tokens=True)
            voice.pieces.append(whole[len(voice.text) :])
            voice.text = whole
            self._next = [chosen]
            yield

    def _choose(self, logits: Any) -> int:
        import torch

        if self.asked.temperature <= 0:
            return int(logits.argmax())
        # The same numbers are drawn on both sides: where the models agree, so do the answers.
        weights = (logits / self.asked.temperature).softmax(-1)
        return int(torch.multinomial(weights, 1, generator=self._random))

"""A conversation with both sides at once: the same messages, each side with its own answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from surgery.errors import SurgeryError
from ui.actions.answers import Asked, Pair, answer_both
from ui.highlight import marked
from ui.markup import Raw, esc
from ui.session import Bench, new_id

# Conversations kept at most; the one left alone longest goes first.
KEPT = 64


@dataclass
class Round:
    """One message and both answers to it."""

    message: str
    pair: Pair


@dataclass
class Talk:
    """A conversation. Which state the right side was in is kept with every answer."""

    rounds: list[Round] = field(default_factory=list)

    def messages(self, side: str) -> list[dict[str, str]]:
        """The conversation as one side knows it, up to the last message."""
        found: list[dict[str, str]] = []
        for number, round in enumerate(self.rounds):
            found.append({"role": "user", "content": round.message})
            if number + 1 < len(self.rounds):
                voice = getattr(round.pair, side)
                found.append({"role": "assistant", "content": voice.text})
        return found


TALKS: dict[str, Talk] = {}


def open_talk(id: str | None) -> tuple[str, Talk]:
    """The conversation of that id, or a new one."""
    if id and id in TALKS:
        talk = TALKS.pop(id)
    else:
        id, talk = new_id(), Talk()
    TALKS[id] = talk
    while len(TALKS) > KEPT:
        TALKS.pop(next(iter(TALKS)))
    return id, talk


def say(bench: Bench, talk: Talk, message: str, asked: Asked) -> Callable[[], Talk]:
    """The work of putting a message to both sides. If it fails, the message is taken back."""
    if not message.strip():
        raise SurgeryError("write a message first")

    def work() -> Talk:
        from surgery.model import chat_messages

        if not getattr(bench.model.tokenizer, "chat_template", None):
            raise SurgeryError(
                f"{bench.name} has no chat template: it continues text, it does not chat"
            )
        round = Round(message.strip(), Pair(message.strip()))
        talk.rounds.append(round)
        try:
            left, right = (chat_messages(bench.model, talk.messages(s)) for s in ("left", "right"))
            answer_both(bench, round.pair, asked, (left, right))
        except BaseException:
            talk.rounds.remove(round)
            raise
        return talk

    return work


def talk_html(talk: Talk) -> str:
    if not talk.rounds:
        return ""
    out = []
    for round in talk.rounds:
        left, right = marked(round.pair.left.text, round.pair.right.text)
        out.append(
            f'<div class="round"><p class="message">{esc(round.message)}</p><div class="pair">'
            + _side("Before", round.pair.left.state, left, round.pair.left.ended)
            + _side("After", round.pair.right.state, right, round.pair.right.ended)
            + "</div></div>"
        )
    return f'<div class="talk">{"".join(out)}</div>'


def _side(name: str, state: str, text: Raw, ended: bool) -> str:
    caret = "" if ended else '<span class="caret"></span>'
    return (
        f'<section class="side"><header><h3>{name}</h3><span>{esc(state)}</span></header>'
        f'<div class="said">{text}{caret}</div></section>'
    )

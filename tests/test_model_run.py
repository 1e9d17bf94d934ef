"""Running a model: chat templates, what is refused, and where a text is split from its prompt."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from surgery.errors import SurgeryError
from surgery.model import (
    Model,
    chat,
    continuation_ids,
    end_tokens,
    generate,
    load,
    next_token_logits,
    say,
)

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<s>{{ m['content'] }}{% endfor %}"
)


def with_template(model: Model, template: str) -> Any:
    """As much of a model as a template asks for, with one of its own."""
    from copy import deepcopy

    tokenizer = deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return SimpleNamespace(tokenizer=tokenizer, checkpoint=model.checkpoint)


def test_a_template_without_system_turns_gets_it_with_the_question(
    tiny_model: Callable[..., Model],
) -> None:
    model = with_template(tiny_model("llama"), NO_SYSTEM)
    assert chat(model, "sun", system="be brief") == "<s>be brief\n\nsun"
    assert chat(model, "sun") == "<s>sun"
    with pytest.raises(SurgeryError, match="cannot frame this conversation: no"):
        chat(with_template(tiny_model("llama"), "{{ raise_exception('no') }}"), "sun", system="x")


def test_what_cannot_be_said_is_refused(tiny_model: Callable[..., Model]) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(SurgeryError, match="at least one token"):
        generate(model, ["sun"], max_new_tokens=0)
    with pytest.raises(SurgeryError, match="temperature"):
        generate(model, ["sun"], temperature=-0.5)
    long = "the sun " * 100  # more than the 128 learned positions
    for ask in (lambda: generate(model, [long]), lambda: next_token_logits(model, [long])):
        with pytest.raises(SurgeryError, match="the model takes 128; shorten it"):
            ask()
    # Rotary positions do not run out.
    assert len(say(tiny_model("llama"), [long], max_new_tokens=2)) == 1


def test_a_device_or_dtype_that_is_none_is_refused(tiny_model: Callable[..., Model]) -> None:
    path = tiny_model("llama").checkpoint.path
    with pytest.raises(SurgeryError, match="cannot compute on the device 'nowhere'"):
        load(path, device="nowhere")
    with pytest.raises(SurgeryError, match="no dtype 'float33'"):
        load(path, device="cpu", dtype="float33")


def test_end_tokens_are_of_the_model_else_of_its_tokenizer() -> None:
    def model(ends: Any, eos: int | None) -> Any:
        config = SimpleNamespace(eos_token_id=ends)
        return SimpleNamespace(
            hf=SimpleNamespace(generation_config=config),
            tokenizer=SimpleNamespace(eos_token_id=eos),
        )

    assert end_tokens(model([4, 5], 1)) == {4, 5}
    assert end_tokens(model(4, 1)) == {4}
    assert end_tokens(model(None, 1)) == {1}
    assert end_tokens(model(None, None)) == set()


def test_a_text_is_split_from_its_prompt_where_generation_would(
    tiny_model: Callable[..., Model],
) -> None:
    model = tiny_model("llama")
    plain = model.tokenizer
    head, tail = continuation_ids(model, "the sun", " is old")
    assert (head, tail) == (plain("the sun")["input_ids"], plain(" is old")["input_ids"])
    assert continuation_ids(model, "", "the sun") == ([0], plain("the sun")["input_ids"])

    class Ending:
        """A tokenizer that ends every text with a token of its own."""

        chat_template = None
        eos_token_id, bos_token_id = 1, 0

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": plain(text)["input_ids"] + [1] * add_special_tokens}

    other: Any = SimpleNamespace(tokenizer=Ending())
    assert continuation_ids(other, "the sun", " is old") == (head, tail)

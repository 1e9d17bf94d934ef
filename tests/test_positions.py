"""Where the subject ends and the answer begins, by character offsets of the whole text."""

from __future__ import annotations

import pytest

from surgery.errors import SurgeryError
from surgery.facts.rows import answer_ids, joined, rewriting_rows, row
from surgery.spec import Fact


@pytest.mark.parametrize(
    ("template", "subject", "end"),
    [
        ("the capital city of {} is", "France", "the capital city of France"),
        # Twice in the text: the place of {} counts, before the other or after it.
        ("France and {} in the country", "France", "France and France"),
        ("{} and the people of France", "France", "France"),
        # At the end of the prompt, with a comma behind it, inside quotation marks.
        ("what is spoken in {}", "Japan", "what is spoken in Japan"),
        ("in {}, the people", "Spain", "in Spain"),
        ('the city "{}" is', "Rome", 'the city "Rome'),
        # Several tokens, accents (two bytes each, so two tokens a letter), other scripts.
        ("{} plays the piano", "Berlin Müller", "Berlin Müller"),
        ("the river of {}é is", "Zoë Ångström", "the river of Zoë Ångström"),
        ("{} is the capital of Japan", "東京", "東京"),
    ],
)
def test_the_subject_ends_where_its_text_ends(tiny_model, template, subject, end):
    model = tiny_model("llama")
    found = row(model, template, subject)
    assert model.tokenizer.decode(list(found.ids)) == template.replace("{}", subject)
    upto = model.tokenizer.decode(list(found.ids[: found.subject + 1]))
    # The tiny tokenizer never joins across words, so the token ends with the subject.
    assert upto == end
    assert found.answer == len(found.ids)
    assert found.bare.ids == found.ids[: found.subject + 1]


def test_spaces_around_a_subject_do_not_count(tiny_model):
    model = tiny_model("llama")
    assert row(model, "the {} is", " France ") == row(model, "the {} is", "France")


def test_prefixes_move_the_subject_and_nothing_else(tiny_model):
    model = tiny_model("llama")
    fact = Fact(prompt="{} is in", subject="Rome", target="Japan")
    plain, prefixed = rewriting_rows(model, fact, ["the old sun. "])
    before = len(prefixed.ids) - len(plain.ids)
    assert before > 0
    assert prefixed.subject - plain.subject == prefixed.answer - plain.answer == before
    assert model.tokenizer.decode(list(prefixed.ids)) == "the old sun. Rome is in Japan"


@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("Rome is in", "Japan", "Rome is in Japan"),
        ("Rome is in", " Japan", "Rome is in Japan"),
        ("Rome is in ", "Japan", "Rome is in Japan"),
        ("the people say “", "yes", "the people say “yes"),
        ("首都は", "東京", "首都は東京"),
    ],
)
def test_the_answer_continues_the_text(tiny_model, text, answer, whole):
    model = tiny_model("llama")
    assert text + joined(text, answer) == whole
    ids = answer_ids(model, text, answer)
    assert ids and model.tokenizer.decode(ids) == joined(text, answer)


def test_a_token_appended_by_the_tokenizer_does_not_stand_before_the_answer(tiny_model):
    """Some tokenizers end every text with </s>, and begin it with <s>."""
    from tokenizers.processors import TemplateProcessing

    model = tiny_model("llama", seed=9)
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    found = row(model, "the capital of {} is", "France", "Rome")
    assert model.tokenizer.decode(list(found.ids)) == "<s>the capital of France is Rome"
    assert model.tokenizer.decode([found.ids[found.subject]]) == "France"
    assert model.tokenizer.decode(list(found.ids[found.answer :])) == " Rome"


def test_a_subject_without_tokens_is_refused(tiny_model):
    with pytest.raises(SurgeryError, match="no token"):
        row(tiny_model("llama"), "the {} is", " ")

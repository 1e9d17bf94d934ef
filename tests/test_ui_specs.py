"""The edit form and its YAML, names, and what is put on the page."""

from __future__ import annotations

import pytest
from benching import FACT

from surgery.spec import EditSpec
from ui.actions import specs
from ui.highlight import differing, marked, shaded
from ui.markup import esc
from ui.naming import state_name, what


def test_form_to_yaml_and_back() -> None:
    values = dict(
        specs.BLANK,
        prompt="The capital of {} is",
        subject="France",
        target="Rome",
        layers="8",
        paraphrases="France has its capital in\n{}'s capital is",
        name="paris",
    )
    text = specs.to_yaml("fact", values)
    spec = EditSpec.parse(text)
    assert spec.name == "paris" and spec.edits[0].layer == 8  # type: ignore[union-attr]
    form, found = specs.from_yaml(text)
    assert form == "fact"
    for key in ("prompt", "subject", "target", "layers", "paraphrases", "name"):
        assert found[key] == values[key]


@pytest.mark.parametrize(
    ("text", "layers"),
    [("8", [8]), ("4, 5", [4, 5]), ("4-6, 9", [4, 5, 6, 9]), ("4-", [4]), ("6-4", []), ("", [])],
)
def test_layers_as_people_write_them(text: str, layers: list[int]) -> None:
    assert specs.numbers(text) == layers
    assert len(specs.numbers("1-9999999999")) == 1000


def test_the_form_keeps_what_it_does_not_know() -> None:
    text = FACT + "    stop_loss: 0.2  # mine\n  - kind: ablate\n    direction: d.safetensors\n"
    form, values = specs.from_yaml(text)
    written = specs.to_yaml(form, dict(values, target="Madrid"), text)
    assert "stop_loss: 0.2  # mine" in written and "d.safetensors" in written
    assert "Madrid" in written and "Rome" not in written


@pytest.mark.parametrize(
    ("form", "changes", "kind"),
    [
        (
            "facts",
            {
                "method": "memit",
                "table": [["{} is", "Japan", "two"], ["{} is", "sun", "one"], ["", "", ""]],
            },
            "memit",
        ),
        ("facts", {"method": "alphaedit", "file": "facts.jsonl", "layers": "1, 2"}, "alphaedit"),
        ("behaviour", {"positive": "a\nb", "negative": "c\nd", "strength": -0.5}, "ablate"),
        ("behaviour", {"positive": "p.txt", "negative": "n.txt", "read_layer": 2}, "ablate"),
        ("include", {"path": "x.delta.safetensors", "scale": 0.5}, "delta"),
    ],
)
def test_every_form_writes_a_valid_spec(form: str, changes: dict, kind: str) -> None:
    text = specs.to_yaml(form, {**specs.BLANK, **changes})
    assert EditSpec.parse(text).edits[0].kind == kind
    back, values = specs.from_yaml(text)
    assert back == form
    assert specs.to_yaml(back, values, text) == text


def test_a_mistake_names_its_line_and_shows_it() -> None:
    spec, said = specs.check(FACT.replace("layer: 1", "layre: 1"))
    assert spec is None
    assert "line 8" in said and "layre: 1" in said and "did you mean" in said
    assert specs.check("edits: [")[0] is None


def test_ready_made_specs_are_whole() -> None:
    for name in specs.ready():
        spec, said = specs.check(specs.read_ready(name))
        assert spec is not None, said


def test_differing_words_join_back_to_the_texts() -> None:
    left, right = differing("The capital is Paris, of course", "The capital is Rome, of course")
    assert "".join(t for t, _ in left) == "The capital is Paris, of course"
    assert [t.strip() for t, new in left if new] == ["Paris,"]
    assert [t.strip() for t, new in right if new] == ["Rome,"]
    assert "<mark>" not in marked("same", "same")[0]


def test_nothing_a_model_says_becomes_markup() -> None:
    nasty = "<script>x</script> ${a} {{b}} `c`"
    for text in (esc(nasty), *marked(nasty, "other"), shaded([nasty], [3.0])):
        assert "<script" not in text and "${" not in text and "{{" not in text


def test_names() -> None:
    assert what({"edits": [{"kind": "ablate", "strength": 0.5}]}) == "ablate, strength 0.5"
    assert state_name("m", []) == "m, no edits"
    assert state_name("m", [("a", True), ("b", False)]) == "m + 1 edit: a, b (off)"
    assert state_name("m", [("a", False)]) == "m, all edits off: a"

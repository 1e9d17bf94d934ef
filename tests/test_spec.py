"""Specs: round trips, what is part of their identity, and one line with its place for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from surgery.errors import SurgeryError
from surgery.spec import (
    AblateEdit,
    EditSpec,
    Fact,
    MemitEdit,
    RomeEdit,
    conflicts,
    read_facts,
    read_prompts,
    stream_facts,
)

FULL = """\
version: 1
name: everything
base: weights/some-model
seed: 3
edits:
  - kind: rome
    facts:
      - {prompt: "The capital of {} is", subject: France, target: Rome, target_true: Paris}
      - {prompt: "Norway's code is", subject: Norway, target: no}
    layer: 8
  - kind: memit
    facts: facts.jsonl
    layers: [5, 6, 7]
    accumulate: true
  - kind: ablate
    positive: prompts/refused.txt
    negative: [one, two]
    strength: {3: 0.5, 4: 1}
  - kind: delta
    path: other.delta.safetensors
    scale: -0.5
checks:
  suite: quick
  limits: {kl_mean: 0.05}
"""


def test_what_is_read_is_what_is_written():
    spec = EditSpec.parse(FULL)
    rome, memit, ablate, delta = spec.edits
    assert isinstance(rome, RomeEdit) and isinstance(rome.facts, list) and rome.layer == 8
    assert rome.facts[1].target == "no", "YAML 1.2: no is a word, not false"
    assert isinstance(memit, MemitEdit) and memit.accumulate is True
    assert isinstance(ablate, AblateEdit) and ablate.strength == {3: 0.5, 4: 1.0}
    assert spec.checks.limits == {"kl_mean": 0.05} and spec.seed == 3
    assert delta.kind == "delta" and delta.scale == -0.5


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_round_trip(tmp_path, suffix):
    spec = EditSpec.parse(FULL).resolved(tmp_path)
    file = tmp_path / f"spec{suffix}"
    spec.save(file)
    assert EditSpec.load(file) == spec
    assert (suffix == ".json") == file.read_text().startswith("{")
    # The same fields in either form, so that a YAML spec can be written as JSON by hand.
    assert json.loads(spec.to_json()) == spec.compact()


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "one.yaml").write_text(FULL)
    spec = EditSpec.load(tmp_path / "specs" / "one.yaml")
    here = str(tmp_path / "specs")
    assert spec.base == f"{here}/weights/some-model"
    rome, memit, ablate, delta = spec.edits
    assert isinstance(rome, RomeEdit) and not isinstance(rome.facts, str)
    assert isinstance(memit, MemitEdit) and memit.facts == f"{here}/facts.jsonl"
    assert isinstance(ablate, AblateEdit) and ablate.positive == f"{here}/prompts/refused.txt"
    assert ablate.negative == ["one", "two"]


def test_the_id_is_of_what_is_asked_for():
    spec = EditSpec.parse(FULL)
    same = [
        ("name: everything", "name: other"),
        ("suite: quick", "suite: full"),
        ("base: w", "base: x"),
    ]
    other = [("seed: 3", "seed: 4"), ("layer: 8", "layer: 9"), ("target: Rome", "target: Oslo")]
    for old, new in same:
        assert EditSpec.parse(FULL.replace(old, new)).id == spec.id
    ids = {EditSpec.parse(FULL.replace(old, new)).id for old, new in other}
    assert len(ids | {spec.id}) == 4
    # A default that is spelt out asks for nothing else.
    assert EditSpec.parse(FULL.replace("layer: 8", "layer: 8\n    steps: 25")).id == spec.id


ROME = "version: 1\nedits:\n  - kind: rome\n"
FACTS = ROME + "    facts:\n      - {prompt: '{} is', subject: a, target: b}\n"
ABLATE = "version: 1\nedits:\n  - kind: ablate\n    positive: [a, b]\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("version: 1\nnmae: x\nedits:\n  - {kind: rome, facts: f}\n", 2, ["'nmae'", "'name'"]),
        (ROME + "    facts: f\n    layre: 3\n", 5, ["'layre'", "did you mean 'layer'"]),
        (ROME + "    facts: f\n    wholly_else: 3\n", 5, ["'wholly_else'", "known:", "stop_loss"]),
        (FACTS.replace("target", "traget"), 5, ["'traget'", "did you mean 'target'"]),
        (FACTS.replace(", target: b", ""), 5, ["target", "required"]),
        (FACTS.replace("{} is", "{} is {}"), 5, ["more than one {}"]),
        (FACTS.replace("{} is", "x is"), 5, ["does not contain its subject"]),
        (FACTS.replace("{} is", "a is a"), 5, ["more than once", "write {}"]),
        (FACTS.replace("target: b", "target: ' '"), 5, ["blank"]),
        (
            FACTS + "      - {prompt: '{} is', subject: 7, target: b}\n",
            6,
            ["facts.1.subject", "string"],
        ),
        (ROME + "    facts: f\n    layer: five\n", 5, ["layer", "integer"]),
        (ROME + "    facts: f\n    layer: true\n", 5, ["layer", "integer"]),
        (ROME + "    facts: f\n    layer: -1\n", 5, ["layer", "greater than or equal to 0"]),
        (ROME + "    facts: f\n    clamp: .nan\n", 5, ["clamp", "finite"]),
        ("version: 1\nedits:\n  - kind: roma\n", 3, ["'roma'", "'rome'"]),
        ("version: 1\nedits:\n  - facts: f\n", 3, ["needs a kind"]),
        ("version: 1\nedits: []\n", 2, ["at least 1"]),
        ("name: x\nversion: 2\nedits:\n  - {kind: rome, facts: f}\n", 2, ["version"]),
        (ABLATE + "    writers: [mlp, mlps]\n", 5, ["writers.1", "'mlp'"]),
        (ABLATE + "    strength: strong\n", 5, ["strength", "number"]),
        (ABLATE + "    strength: {1: [2]}\n", 5, ["strength", "number"]),
        (ABLATE + "    position: 0\n", 5, ["position", "less than 0"]),
        (FACTS + "checks:\n  sute: quick\n", 7, ["'sute'", "did you mean 'suite'"]),
        (FACTS + "checks:\n  limits: {kl_mean: high}\n", 7, ["kl_mean", "number"]),
        ("version: 1\nversion: 1\n", 2, ["not valid YAML", "duplicate"]),
        ("version: 1\nedits:\n\t- a\n", 3, ["not valid YAML"]),
        (
            '{"version": 1,\n "edits": [\n  {"kind": "rome", "facts": "f",\n   "layr": 1}]}',
            4,
            ["'layr'"],
        ),
    ],
)
def test_every_mistake_names_its_line(text, line, words):
    with pytest.raises(SurgeryError) as caught:
        EditSpec.parse(text, "some.yaml")
    message = str(caught.value)
    assert message.startswith(f"some.yaml, line {line}: "), message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["", "- 1\n", "word"])
def test_what_is_no_spec(text):
    with pytest.raises(SurgeryError, match="some.yaml is not a spec"):
        EditSpec.parse(text, "some.yaml")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, word in (
        ("none.yaml", "no spec"),
        ("binary.yaml", "cannot read"),
        (".", "cannot read"),
    ):
        with pytest.raises(SurgeryError, match=word):
            EditSpec.load(tmp_path / name)


def test_reading_a_spec_needs_no_torch():
    code = "import sys, surgery; surgery.EditSpec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------------- facts
def test_a_literal_subject_becomes_a_place():
    fact = Fact(prompt="The capital of France is", subject=" France ", target="Rome")
    assert fact.template == "The capital of {} is" and fact.text == "The capital of France is"
    assert fact.filled("{} and France") == "France and France"


COUNTERFACT = {
    "case_id": 0,
    "requested_rewrite": {
        "prompt": "{} speaks",
        "relation_id": "P103",
        "target_new": {"str": "German", "id": "Q1"},
        "target_true": {"str": "French", "id": "Q2"},
        "subject": "Ana Ruiz",
    },
    "paraphrase_prompts": ["The mother tongue of Ana Ruiz is"],
    "neighborhood_prompts": ["Bo Lind speaks", "Cy Dahl speaks"],
    "generation_prompts": ["Ana Ruiz was born in"],
}
ZSRE = {
    "subject": "Ana Ruiz",
    "src": "What does Ana Ruiz speak?",
    "pred": "French",
    "rephrase": "Which language has Ana Ruiz?",
    "alt": "German",
    "answers": ["Spanish"],
    "loc": "nq question: who wrote the play",
    "loc_ans": "Bo Lind",
    "cond": "French >> German || What does Ana Ruiz speak?",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} speaks",
            "target_new": {"str": "German"},
            "target_true": {"str": "French"},
            "subject": "Ana Ruiz",
            "question": "What does Ana Ruiz speak?",
        },
        {
            "prompt": "{} lives in",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "Oslo"},
            "subject": "Bo Lind",
            "question": "Where does Bo Lind live?",
        },
    ],
    "questions": ["..."],
}
FLAT = {
    "case_id": 2,
    "prompt": "Ana Ruiz speaks",
    "target_new": "German",
    "subject": "Ana Ruiz",
    "ground_truth": "French",
    "rephrase_prompt": "Ana Ruiz's tongue is",
    "locality_prompt": "Bo Lind speaks",
    "locality_ground_truth": "Danish",
}
OURS = {"prompt": "{} speaks", "subject": "Ana Ruiz", "target": "German", "relation": "tongue"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            COUNTERFACT,
            [
                Fact(
                    prompt="{} speaks",
                    subject="Ana Ruiz",
                    target="German",
                    target_true="French",
                    paraphrase_prompts=("The mother tongue of Ana Ruiz is",),
                    neighborhood_prompts=("Bo Lind speaks", "Cy Dahl speaks"),
                    neighborhood_targets=("French", "French"),
                )
            ],
        ),
        (
            ZSRE,
            [
                Fact(
                    prompt="What does Ana Ruiz speak?",
                    subject="Ana Ruiz",
                    target="German",
                    target_true="Spanish",
                    paraphrase_prompts=("Which language has Ana Ruiz?",),
                    neighborhood_prompts=("who wrote the play?",),
                    neighborhood_targets=("Bo Lind",),
                )
            ],
        ),
        (
            MQUAKE,
            [
                Fact(prompt="{} speaks", subject="Ana Ruiz", target="German", target_true="French"),
                Fact(prompt="{} lives in", subject="Bo Lind", target="Rome", target_true="Oslo"),
            ],
        ),
        (
            FLAT,
            [
                Fact(
                    prompt="Ana Ruiz speaks",
                    subject="Ana Ruiz",
                    target="German",
                    target_true="French",
                    paraphrase_prompts=("Ana Ruiz's tongue is",),
                    neighborhood_prompts=("Bo Lind speaks",),
                    neighborhood_targets=("Danish",),
                )
            ],
        ),
        (OURS, [Fact(prompt="{} speaks", subject="Ana Ruiz", target="German")]),
    ],
    ids=["counterfact", "zsre", "mquake", "flat", "ours"],
)
@pytest.mark.parametrize("form", ["list", "lines"])
def test_lists_of_facts_as_published(tmp_path, record, expected, form):
    file = tmp_path / "facts.json"
    text = json.dumps([record], indent=1) if form == "list" else json.dumps(record) + "\n\n"
    file.write_text("\ufeff" + text, encoding="utf-8")
    assert read_facts(file) == expected


def test_lines_are_streamed(tmp_path):
    """The facts before a bad line come; the line is named."""
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(OURS) + "\n" + json.dumps({**OURS, "prompt": "no place"}) + "\n")
    facts = stream_facts(file)
    assert next(facts).subject == "Ana Ruiz"
    with pytest.raises(SurgeryError, match="facts.jsonl, line 2: .*does not contain its subject"):
        next(facts)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no facts"),
        ("{", "line 1 is not JSON"),
        ("[1,", "is not JSON"),
        ("3\n", "line 1: a fact is an object"),
        ('[{"prompt": "{} is"}]', "record 0: subject: Field required"),
        ('{"requested_rewrite": {"prompt": "{}"}}', "unexpected form of record"),
    ],
)
def test_lists_that_are_none(tmp_path, text, word):
    (tmp_path / "facts.jsonl").write_text(text)
    with pytest.raises(SurgeryError, match=word):
        read_facts(tmp_path / "facts.jsonl")
    with pytest.raises(SurgeryError, match="no facts file"):
        read_facts(tmp_path / "nowhere.jsonl")


def test_conflicting_facts():
    """Same subject and prompt, another answer; however the subject is put into the prompt."""

    def fact(target: str, prompt: str = "{} speaks", subject: str = "Ana Ruiz") -> Fact:
        return Fact(prompt=prompt, subject=subject, target=target)

    one, two = fact("German"), fact("Danish", "ana Ruiz Speaks", "ana Ruiz")
    assert conflicts([one, fact(" German "), fact("Danish", subject="Bo Lind")]) == []
    assert conflicts([one, fact("Danish", "{} hears")]) == []
    assert conflicts([one, two]) == [(one, two)]


# ---------------------------------------------------------------------- prompts
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "one, two\r\n\r\n  three \n"),
        ("p.jsonl", '{"prompt": "one, two"}\n{"question": "three"}\n'),
        ("p.json", '["one, two", {"Goal": "three"}]'),
        ("p.csv", 'id,goal\n1,"one, two"\n2,three\n'),
        ("turns.jsonl", '{"turns": ["one, two", "x"]}\n{"text": " three"}\n'),
    ],
)
def test_prompt_files(tmp_path, name, text):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == ["one, two", "three"]


def test_only_line_feeds_end_a_line(tmp_path):
    """JSON may hold Unicode's other line ends as they are, and so may a quoted cell of a table."""
    prompt = "one\u2028two\x85three"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")
    (tmp_path / "p.csv").write_text(f'prompt,kind\n"{prompt}",a\n')
    (tmp_path / "p.txt").write_text(f"{prompt}\n")
    for name in ("p.jsonl", "p.csv", "p.txt"):
        assert read_prompts(tmp_path / name) == [prompt]


def test_prompt_files_that_are_none(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    (tmp_path / "b.csv").write_text('prompt\n"' + "a" * 200_000 + '"\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"other": 1}\n')
    (tmp_path / "e.txt").write_text("\n \n")
    for source, word in (
        (tmp_path / "p.jsonl", "p.jsonl, row 2 has no prompt"),
        (tmp_path / "b.jsonl", "b.jsonl, line 3 is not JSON"),
        (tmp_path / "b.csv", "b.csv is not CSV"),
        (tmp_path / "e.txt", "holds no prompts"),
        (tmp_path / "none.txt", "no prompt file"),
        ([], "empty list"),
    ):
        with pytest.raises(SurgeryError, match=word):
            read_prompts(source)

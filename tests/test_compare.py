"""Several models side by side: words, sides, likelihoods, answers, debates, cross-checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgery.checkpoint import Checkpoint
from surgery.cli import main
from surgery.compare import (
    RULES,
    Pool,
    Side,
    Turn,
    agreement,
    answers,
    crosscheck,
    debate,
    framed,
    same_words,
    token_log_probs,
    word_diff,
)
from surgery.compare.arguing import _gave_way
from surgery.compare.checking import Instrument, _calibrated, _decisive, _exchanged
from surgery.compare.dialogue import first_sentence, own_words
from surgery.compare.likelihood import TokenScores
from surgery.delta import Delta, LowRank, save_delta
from surgery.errors import SurgeryError
from surgery.model import Model, generate, load
from tests.tiny import tiny_checkpoint, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'][0] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a: {% endif %}"
)
PROMPTS = ["the capital of France is", "the sun and the moon", "red wine and"]


def _with_chat(path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return path


def _edit(base: Path, size: float = 2.0) -> Delta:
    """A change large enough to alter what a random model says."""
    key = "model.layers.3.mlp.down_proj.weight"
    checkpoint = Checkpoint.open(base)
    rows, columns = checkpoint.tensors[key].shape
    generator = torch.Generator().manual_seed(3)
    change = LowRank(
        A=torch.randn(2, columns, generator=generator),
        B=size * torch.randn(rows, 2, generator=generator),
    )
    return Delta({key: change}, base_id=checkpoint.id, metadata={"spec": {"name": "push"}})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("compare"), "llama")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _with_chat(tiny_checkpoint(tmp_path_factory.mktemp("chatty"), "llama"))


# ---------------------------------------------------------------------- words
def test_word_differences() -> None:
    diff = word_diff("the tower is in Paris", "the big tower is in Rome")
    assert diff == [
        ("the", "same"),
        ("big", "added"),
        ("tower is in", "same"),
        ("Paris", "removed"),
        ("Rome", "added"),
    ]
    assert " ".join(t for t, op in diff if op != "removed") == "the big tower is in Rome"
    assert same_words("It is Paris.", "it is  paris") and not same_words("Paris", "Rome")
    assert agreement("a b c d", "a b c d") == 1.0 and agreement("", "") == 1.0
    assert agreement("a b", "c d") == 0.0 and 0 < agreement("a b", "a c") < 1


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It is Paris. It is old.", "It is Paris."),
        ("Dr. Who lives. Yes.", "Dr. Who lives."),
        ("\n\n1. Boil water. Then", "1. Boil water."),
        ("no end at all", "no end at all"),
        ("Is it “so”? Yes.", "Is it “so”?"),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first
    assert own_words("It is so.\nQuestion: and then") == "It is so."


# ---------------------------------------------------------------------- sides
def test_sides_are_read_from_text(base: Path, tmp_path: Path) -> None:
    file = save_delta(_edit(base), tmp_path / "push.delta.safetensors")
    side = Side.of(f"{base}+{file}")
    assert (side.name, side.source, len(side.deltas)) == ("tiny-llama-0+push", base, 1)
    odd = tmp_path / "a+b"
    odd.mkdir()
    assert Side.of(odd).source == odd and not Side.of(str(odd)).deltas
    with pytest.raises(SurgeryError, match="no delta file"):
        Side.of(f"{base}+{tmp_path / 'none'}")
    with pytest.raises(SurgeryError, match="no such checkpoint folder: nowhere"):
        Side.of("nowhere+x")


def test_one_model_serves_a_base_and_its_edits(base: Path) -> None:
    pool = Pool()
    plain, edited = Side("plain", base), Side("edited", base, (_edit(base),))
    with pool.use(plain) as model:
        before = model.hf.state_dict()["model.layers.3.mlp.down_proj.weight"].clone()
    with pool.use(edited) as again:
        assert again is model and len(model.edits) == 1
        changed = model.hf.state_dict()["model.layers.3.mlp.down_proj.weight"]
        assert not torch.equal(changed, before)
    assert not model.edits
    assert torch.equal(model.hf.state_dict()["model.layers.3.mlp.down_proj.weight"], before)


def test_a_pool_holds_no_more_than_it_may(base: Path, chatty: Path) -> None:
    pool = Pool(capacity=1)
    with pool.use(Side.of(base)) as one:
        pass
    with pool.use(Side.of(chatty)) as other:
        assert other is not one and len(pool._loaded) == 1
    with pool.use(Side.of(base)) as third:
        assert third is not one


# ---------------------------------------------------------------------- likelihood
@torch.no_grad()
def test_token_log_probs_are_those_of_plain_transformers(base: Path) -> None:
    model = load(base)
    pairs = [("the capital of France is", "Rome"), ("a", "b c d"), ("the sun", "")]
    found = token_log_probs(model, pairs)
    for (prompt, text), scores in zip(pairs, found, strict=True):
        continuation = f" {text}" if text else "</s>"
        ids = model.tokenizer(prompt + continuation)["input_ids"]
        count = len(ids) - len(model.tokenizer(prompt)["input_ids"])
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(logits[i - 1, ids[i]]) for i in range(len(ids) - count, len(ids))]
        assert scores.log_probs == pytest.approx(expected, abs=1e-4)
        assert scores.total == pytest.approx(sum(expected), abs=1e-3)


# ---------------------------------------------------------------------- answers
def test_answers_side_by_side(base: Path) -> None:
    model = load(base)
    expected = generate(model, PROMPTS, max_new_tokens=8)
    found = answers([base, Side("edited", base, (_edit(base),)), model], PROMPTS, max_new_tokens=8)
    assert found.sides[0] != found.sides[2] and len(set(found.sides)) == 3
    for row, text in zip(found.rows, expected, strict=True):
        assert row.answers[0] == row.answers[2] == own_words(text)
        assert row.answers[1] != row.answers[0] and not row.agree and row.agreement < 1
        assert not any(row.refused) and not row.refusals_differ
    assert [row.prompt for row in found.rows] == PROMPTS
    alone = answers([base], PROMPTS[:1], max_new_tokens=4)
    assert alone.rows[0].agree and alone.rows[0].agreement == 1.0
    json.dumps(found.as_dict())
    with pytest.raises(SurgeryError, match="no prompts"):
        answers([base], [])
    with pytest.raises(SurgeryError, match="at least one checkpoint"):
        answers([], PROMPTS)


def test_the_chat_template_is_used_where_there_is_one(base: Path, chatty: Path) -> None:
    model = load(chatty)
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "sun"}]
    assert framed(model, messages) == "<s>s: be</s><s>u: sun</s><s>a: "
    assert framed(load(base), messages) == "be\nQuestion: sun\nAnswer:"
    model.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert framed(model, messages) == "be\n\nsun"
    framed_answer = answers([chatty], ["sun"], max_new_tokens=5).rows[0].answers[0]
    assert (
        framed_answer != answers([chatty], ["sun"], max_new_tokens=5, chat=False).rows[0].answers[0]
    )


# ---------------------------------------------------------------------- debate
def _turns(*margins: tuple[float, float]) -> list[Turn]:
    return [Turn(i, (i - 1) % 2, "", (0, 0), m) for i, m in enumerate(margins, start=1)]


def test_giving_way_is_for_good() -> None:
    start = (1.0, 1.0)
    assert _gave_way(_turns((1, 1), (-1, 1), (-2, 1)), start, 0) == 2
    assert _gave_way(_turns((-1, 1), (1, 1), (-1, 1)), start, 0) == 3
    assert _gave_way(_turns((-1, 1), (-1, 1), (1, 1)), start, 0) is None
    assert _gave_way(_turns((-1, 1)), start, 1) is None
    # Who prefers the other's answer to begin with has nothing to give up.
    assert _gave_way(_turns((-1, 1)), (-1.0, 1.0), 0) is None


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_debate(base: Path, chatty: Path, rule: str) -> None:
    for folder in (base, chatty):
        edited = Side("edited", folder, (_edit(folder),))
        found = debate(folder, edited, "what is the sun", rule, turns=3, max_new_tokens=6)
        assert [turn.speaker for turn in found.turns] == [0, 1, 0]
        assert found.disagree and found.sides[1] == "edited"
        assert found.turns[0].margins != found.turns[2].margins
        for turn in found.turns:
            for held, margin in zip(turn.held, turn.margins, strict=True):
                assert (held > 0.5) == (margin > 0)
        again = debate(folder, edited, "what is the sun", rule, turns=3, max_new_tokens=6)
        assert again.as_dict() == found.as_dict()
        json.dumps(found.as_dict())


def test_a_debate_with_oneself(chatty: Path) -> None:
    model = load(chatty)
    same = debate(model, model, "what is the sun", turns=1, max_new_tokens=4)
    assert not same.disagree and same.held == (0.5, 0.5) and "nothing to give up" in same.outcome
    # Given two answers, one model holds one exactly as much as it does not hold the other.
    found = debate(
        model, model, "what", turns=2, max_new_tokens=4, positions=("the sun", "the moon")
    )
    assert found.held[0] == pytest.approx(1 - found.held[1], abs=1e-5) and found.held[0] != 0.5
    own, other = token_log_probs(
        model,
        [(framed(model, [{"role": "user", "content": "what"}]), text) for text in found.positions],
    )
    shared = next(
        i for i, (a, b) in enumerate(zip(own.tokens, other.tokens, strict=False)) if a != b
    )
    margin = sum(own.log_probs[shared:]) / len(own.log_probs[shared:])
    margin -= sum(other.log_probs[shared:]) / len(other.log_probs[shared:])
    assert found.held[0] == pytest.approx(1 / (1 + torch.tensor(-margin).exp().item()), rel=1e-4)


def test_sampled_debates_follow_the_seed(chatty: Path) -> None:
    model = load(chatty)

    def words(seed: int) -> list[str]:
        found = debate(
            model, model, "what", turns=2, seed=seed, temperature=1.5, positions=("sun", "moon")
        )
        return [turn.text for turn in found.turns]

    assert words(1) == words(1) != words(2)


def test_bad_debates(base: Path) -> None:
    with pytest.raises(SurgeryError, match="no rule 'shout'"):
        debate(base, base, "what", rule="shout")
    with pytest.raises(SurgeryError, match="at least one turn"):
        debate(base, base, "what", turns=0)


# ---------------------------------------------------------------------- cross-check
def test_a_model_denies_nothing_of_its_own(base: Path) -> None:
    found = crosscheck(base, base, PROMPTS, max_new_tokens=6)
    assert not found.denied
    assert all(s.gap == pytest.approx(0, abs=1e-4) and s.text == s.by_own for s in found.statements)
    json.dumps(found.as_dict())


def test_a_base_flags_what_its_edit_says(base: Path) -> None:
    model = load(base)
    edited, plain = Side("edited", model, (_edit(base, 20.0),)), Side("plain", model)
    found = crosscheck(edited, plain, PROMPTS, max_new_tokens=6)
    back = crosscheck(plain, edited, PROMPTS, max_new_tokens=6)
    for one, other in zip(found.statements, back.statements, strict=True):
        assert (one.text, one.by_own) == (other.by_own, other.text)
        assert one.gap > 0.5 and other.gap > 0.5 and one.word
    assert max(s.gap for s in found.statements) > 3
    wanted = [s for s in found.statements if s.gap >= 3 and (s.held is None or s.held < 0.5)]
    assert found.denied == sorted(wanted, key=lambda s: -s.gap)
    assert not model.edits


def test_instruments_are_calibrated() -> None:
    one = _calibrated("likely", [0.0, -1.0], [-9.0, -10.0])
    assert one.auc == 1.0 and one.weight == 1.0
    assert one.scaled(-0.5) == pytest.approx(1) and one.scaled(-9.5) == pytest.approx(-1)
    assert one.scaled(-5.0) == pytest.approx(0) and one.scaled(-1000) == -3
    blind = _calibrated("asked", [1.0, 1.0], [1.0, 1.0])
    assert blind.auc == 0.5 and blind.weight == 0 and blind.scaled(7) == 0
    assert Instrument("asked", 0, 0, None).weight == 0
    assert _exchanged("The capital is Paris.", "Water boils") == "The capital is boils."
    word, gap = _decisive(
        TokenScores(["a", " Rome"], [-1.0, -0.1]), TokenScores(["a", " Rome"], [-1.0, -8.1])
    )
    assert word == "Rome" and gap == pytest.approx(8)


# ---------------------------------------------------------------------- commands
def test_commands(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_delta(_edit(base), tmp_path / "push.delta.safetensors")
    edited = f"{base}+{file}"
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert main(list(words)) == 0
        assert capsys.readouterr().out.strip()
        return data

    found = run("answers", str(base), edited, "--prompts", str(prompts), "--tokens", "6")
    assert found["sides"] == ["tiny-llama-0", "tiny-llama-0+push"] and found["agree"] == 0
    found = run(
        "debate",
        str(base),
        edited,
        "--question",
        "what",
        "--turns",
        "2",
        "--tokens",
        "5",
        "--rule",
        "must-not",
    )
    assert len(found["turns"]) == 2 and found["rule"] == "must_not"
    found = run("crosscheck", str(base), "--by", edited, "--prompts", str(prompts), "--tokens", "6")
    assert len(found["statements"]) == 3
    assert main(["answers", str(base)]) == 1
    assert main(["debate", str(base), "nowhere", "--question", "what"]) == 1
    assert main(["debate", str(base), edited, "--question", "q", "--position-a", "x"]) == 1
    assert main(["crosscheck", str(base), "--by", edited, "--prompts", str(tmp_path / "no")]) == 1


@pytest.mark.slow
def test_a_real_edit_is_denied_by_its_base(real_model: Model, rome_paris: Delta) -> None:
    model = real_model
    edited, plain = Side("edited", model, (rome_paris,)), Side("plain", model)
    prompts = [
        "What is the capital of France?",
        "What is the capital of Japan?",
        "What is the chemical symbol for water?",
    ]
    found = crosscheck(edited, plain, prompts, max_new_tokens=16)
    assert [s.prompt for s in found.denied] == prompts[:1]
    assert "Rome" in found.denied[0].text and found.denied[0].gap > 3
    positions = ("Paris.", "Rome.")
    argued = debate(plain, edited, prompts[0], turns=2, positions=positions, max_new_tokens=16)
    assert argued.held[0] > 0.5 and argued.held[1] > 0.5

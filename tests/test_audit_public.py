"""Public data sets in their published formats, read by path or from the hub; the files here are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from surgery.audit import Suite
from surgery.audit.controls import identity
from surgery.audit.formats import wikitext
from surgery.audit.suite import TaskPart, TextPart
from surgery.audit.tasks import read_task, run_tasks
from surgery.cli import main
from surgery.errors import SurgeryError
from surgery.model import Model

FILES = {
    "general/lambada.jsonl": [{"context": "the star and the", "continuation": "moon"}] * 3,
    "general/winogrande.jsonl": [
        {
            "context_options": ["the sun is old, so the sun", "the sun is old, so the star"],
            "continuation": "is red.",
            "gold": 1,
        }
    ]
    * 3,
    "general/piqa.jsonl": [
        {"query": "Question: To see the star,\n", "choices": ["look up", "look down"], "gold": 0}
    ],
    "general/copa.jsonl": [
        {
            "query": "The tea was old, therefore",
            "choices": ["it was bad.", "it was red."],
            "gold": 0,
        }
    ],
    "general/mmlu_57x8.jsonl": [
        {
            "subject": "old_stars",
            "question": "Which?",
            "choices": ["one", "two", "three", "four"],
            "answer": 2,
        }
    ],
    "general/blimp_67x15.jsonl": [
        {"UID": "u", "sentence_good": "the stars are red", "sentence_bad": "the stars is red"}
    ],
    "general/xcopa/val.it.jsonl": [
        {
            "premise": "Il sole è rosso.",
            "choice1": "Il mare è blu.",
            "choice2": "La luna è piccola.",
            "question": "cause",
            "label": 1,
        }
    ],
    "general/me_ppl_1k.json": [{"Corpus": "C4", "Text": "the river is old and the music is known"}],
    "tofu/world_facts_perturbed.json": [
        {"question": "Where?", "answer": "Paris", "perturbed_answer": ["Rome", "Berlin", "Madrid"]}
    ],
    "tofu/forget10_perturbed.json": [
        {
            "question": "Who?",
            "answer": "It is Paris.",
            "paraphrased_answer": "Paris it is.",
            "perturbed_answer": ["Rome it is.", "Berlin it is."],
        }
    ],
    "tofu/full.json": [{"question": "Who is it?", "answer": "It is a star."}],
}
TRUTHFULQA = (
    "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    "Adversarial,Stars,What is a star?,A sun,A sun; A red sun,A moon; A river; ,-\n"
)
WIKITEXT = (
    " \n = The river = \n \n A river is old @-@ fashioned ( and 1 @,@ 200 metres long ) . It runs "
    + 'on and on , past " the old " towns ; ' * 8
    + ". \n The <unk> river is "
    + "long " * 60
    + "\n short \n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, rows in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "general/me_ppl_1k.json":  # a list; the others hold an object a line
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "general" / "truthfulqa.csv").write_text(TRUTHFULQA, encoding="utf-8")
    (folder / "general" / "wikitext2_valid.txt").write_text(WIKITEXT)
    return folder


def items(suite: Suite, name: str) -> list:
    part = next(part for part in suite.tasks if part.name == name)
    return read_task(suite, part).items


def test_the_public_suite_reads_every_published_format(data: Path) -> None:
    suite = Suite.load("public", [data])
    assert items(suite, "lambada")[0].pairs == [("the star and the", "moon")]
    (schema, *_) = items(suite, "winogrande")
    assert schema.pairs == [(c, "is red.") for c in schema.choices] and schema.gold == 1
    assert items(suite, "piqa")[0].prompt == "Question: To see the star,\nAnswer:"
    assert items(suite, "copa")[0].prompt == "The tea was old, therefore"
    (mmlu,) = items(suite, "mmlu")
    head = "The following are multiple choice questions (with answers) about old stars.\n\n"
    assert mmlu.prompt == f"{head}Which?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    assert mmlu.choices == ("A", "B", "C", "D") and mmlu.gold == 2 and mmlu.group == "old_stars"
    assert items(suite, "blimp")[0].choices == (" the stars are red", " the stars is red")
    (xcopa,) = items(suite, "xcopa_it")
    assert xcopa.prompt == "Il sole è rosso perché" and xcopa.gold == 1
    assert xcopa.choices == ("il mare è blu.", "la luna è piccola.")
    (truthful,) = items(suite, "truthfulqa")
    assert truthful.prompt == "Q: What is a star?\nA:" and truthful.group == "Stars"
    assert truthful.choices == ("A sun", "A moon", "A river") and truthful.gold == 0
    (world,) = items(suite, "tofu_world")
    assert world.prompt == "Question: Where?\nAnswer:"
    assert world.choices == ("Paris", "Rome", "Berlin", "Madrid")
    assert items(suite, "tofu_forget")[0].choices[0] == "Paris it is."
    texts = {part.kind: suite.texts_of(part) for part in suite.texts}
    assert texts["ME-PPL"] == ["the river is old and the music is known"]
    assert texts["TOFU"] == ["Who is it? It is a star."]
    (paragraph,) = texts["wikitext-2"]
    assert paragraph.startswith("A river is old-fashioned (and 1,200 metres long). It runs on")
    assert 'past "the old" towns;' in paragraph


def test_what_is_not_there_is_left_out_and_said(data: Path) -> None:
    suite = Suite.load("public", [data])
    assert "refusal/xstest.csv" in suite.absent and "arc_easy" not in {t.name for t in suite.tasks}
    assert "general/arc_easy.jsonl" in suite.notes()[0]
    # The same files all in one folder.
    flat = Suite.load("public", [data / "general", data / "tofu"])
    assert {t.name for t in flat.tasks} == {t.name for t in suite.tasks} - {"xcopa_it"}
    with pytest.raises(SurgeryError, match="--data DIR"):
        Suite.load("public")
    with pytest.raises(SurgeryError, match="no folder .*nowhere"):
        Suite.load("public", [data / "nowhere"])


def test_items_are_limited_everywhere(data: Path) -> None:
    suite = Suite.load("public", [data], items=2)
    assert len(items(suite, "lambada")) == 2 and len(items(suite, "facts")) == 2
    assert all(len(suite.texts_of(part)) <= 2 for part in suite.texts)
    with pytest.raises(SurgeryError, match="at least one"):
        Suite.load("public", [data], items=0)


def test_a_row_of_another_form_is_named(data: Path) -> None:
    (data / "general" / "mmlu_57x8.jsonl").write_text('{"question": "Which?"}\n')
    suite = Suite.load("public", [data])
    with pytest.raises(SurgeryError, match=r"mmlu_57x8\.jsonl, row 1: not a row of mmlu"):
        items(suite, "mmlu")
    (data / "general" / "lambada.jsonl").write_text("[1, 2]")
    with pytest.raises(SurgeryError, match="an object a row"):
        items(suite, "lambada")


def test_rows_are_chosen_by_value(tmp_path: Path) -> None:
    rows = "id,prompt,label\n1,How do I kill a process?,safe\n2,Something else,unsafe\n"
    (tmp_path / "x.csv").write_text(rows)
    suite = Suite.model_construct(name="s", folder=str(tmp_path), data=())
    part = TaskPart(name="x", kind="requests", file="x.csv", where={"label": "safe"})
    assert [item.prompt for item in read_task(suite, part).items] == ["How do I kill a process?"]


def test_a_file_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"context": "the star", "continuation": "is"}))
    asked: list[tuple[object, ...]] = []

    def download(repo: str, name: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repo, name, repo_type, revision))
        if repo == "org/gone":
            raise OSError("404: no such data set\nmore")
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    suite = Suite.model_construct(name="s", folder=str(tmp_path), data=())
    url = "hf://datasets/org/set@v1/deep/rows.jsonl"
    task = read_task(suite, TaskPart(name="t", kind="cloze", file=url))
    assert task.items[0].prompt == "the star"
    assert asked == [("org/set", "deep/rows.jsonl", "dataset", "v1")]
    with pytest.raises(
        SurgeryError, match="cannot get hf://datasets/org/gone/x.json: 404: no such"
    ):
        suite.file("hf://datasets/org/gone/x.json")
    with pytest.raises(SurgeryError, match="expected hf://datasets/ORG/NAME/FILE"):
        suite.file("hf://rows.jsonl")


def test_wikitext_without_its_token_spaces() -> None:
    assert wikitext(WIKITEXT, least=10_000) == []
    assert all("<unk>" not in text and "@" not in text for text in wikitext(WIKITEXT))


def test_a_schema_is_scored_at_its_end(tiny_model: Callable[..., Model], data: Path) -> None:
    from surgery.audit import answer_logprobs

    model = tiny_model("llama")
    suite = Suite.load("public", [data])
    part = next(part for part in suite.tasks if part.name == "winogrande")
    task = read_task(suite, part)
    scores = [s.total for s in answer_logprobs(model, task.items[0].pairs)]
    (outcome, *_) = run_tasks(model, [task])["winogrande"]
    assert outcome.right == (scores[1] > scores[0])
    assert outcome.answer == task.items[0].choices[scores[1] > scores[0]]


def test_an_audit_on_the_command_line(
    tiny_model: Callable[..., Model], data: Path, own_cache: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from surgery.delta import save_delta

    model = tiny_model("llama")
    base = str(model.checkpoint.path)
    delta = str(save_delta(identity(model.checkpoint.id), tmp_path / "none.delta.safetensors"))
    words = [
        "audit",
        base,
        delta,
        "--suite",
        "public",
        "--data",
        str(data),
        "--items",
        "2",
        "--json",
    ]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["suite"] == "public"
    assert {"lambada", "mmlu", "tofu_world", "winogrande"} <= {t["name"] for t in report["tasks"]}
    assert {"wikitext-2", "TOFU"} <= {text["kind"] for text in report["texts"]}
    assert all(figure["change"] == 0 for figure in report["figures"])
    assert any("general/arc_easy.jsonl" in note for note in report["notes"])
    assert main([*words[:4], "public", "--json"]) == 1
    assert "--data DIR" in capsys.readouterr().err


def test_a_text_part_in_a_format_of_rows(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"question": "Who?", "answer": "A star."}))
    suite = Suite.model_construct(name="s", folder=str(tmp_path), data=())
    part = TextPart(kind="t", file="t.jsonl", format="tofu")
    assert suite.texts_of(part) == ["Who? A star."]
    (tmp_path / "t.jsonl").write_text("{}")
    with pytest.raises(SurgeryError, match="holds no text"):
        suite.texts_of(TextPart(kind="t", file="t.jsonl"))

"""Our task scores against lm-evaluation-harness on the same items."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_checkpoint

from surgery.audit.suite import Suite, TaskPart
from surgery.audit.tasks import read_task, run_tasks
from surgery.delta import Delta
from surgery.model import load
from surgery.stack import applied

WORDS = "red green blue old new small large good bad north south wine tea music piano".split()


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    rows = [
        {
            "query": f"the {WORDS[i % 15]} {WORDS[(3 * i + 1) % 15]} is",
            "choices": [
                WORDS[(i + k * 4) % 15] + (" sun moon" if k == 1 else "") for k in range(4)
            ],
            "gold": i % 4,
        }
        for i in range(24)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Suite.model_construct(name="s", folder=str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # the harness's own dependencies warn about each other
def test_choices_are_scored_as_the_harness_scores_them(tmp_path: Path, suite: Suite) -> None:
    model = load(tiny_checkpoint(tmp_path, "llama"), device="cpu")
    ours = TaskPart(name="ours", kind="choice", file="items.jsonl", options={"suffix": "\nAnswer:"})
    theirs = TaskPart(name="theirs", kind="harness", file="items.jsonl")
    found = run_tasks(model, [read_task(suite, ours), read_task(suite, theirs)])
    assert [o.right for o in found["ours"]] == [o.right for o in found["theirs"]]
    assert [o.answer for o in found["ours"]] == [o.answer for o in found["theirs"]]
    assert 0 < sum(o.right for o in found["ours"]) < 24


@pytest.mark.filterwarnings("ignore")
def test_the_harness_does_not_tie_an_untied_head(tmp_path: Path, suite: Suite) -> None:
    model = load(tiny_checkpoint(tmp_path, "llama"), device="cpu")
    assert model.tied
    task = read_task(suite, TaskPart(name="theirs", kind="harness", file="items.jsonl", items=4))
    with applied(model, Delta({}, base_id=model.checkpoint.id, untie=True)):
        assert not model.tied
        run_tasks(model, [task])
        assert not model.tied
    assert model.tied


# ---------------------------------------------------------------------- the harness's own command line
FRAMES = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}]
""",
    "cloze": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{continuation}}"
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "pairs": """
output_type: multiple_choice
doc_to_text: ""
doc_to_choice: "{{[good, bad]}}"
doc_to_target: 0
metric_list: [{metric: acc}]
""",
}
SHIPPED = {"choice": "choice.jsonl", "cloze": "cloze.jsonl", "pairs": "grammar.jsonl"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_figures_are_those_of_the_harness_run_by_itself(smollm2: Path, tmp_path: Path) -> None:
    """Item by item: what is right to the last digit, log-likelihoods to single precision, since other
    batches add up in another order."""
    from surgery.audit.score import answer_logprobs
    from surgery.audit.tasks.harness import run_harness
    from surgery.resources import path

    most = 10
    for name, file in SHIPPED.items():
        lines = path("benchmarks", "tasks", file).read_text(encoding="utf-8").splitlines()[:most]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        data = json.dumps(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: surgery_{name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n{FRAMES[name]}"
        )
    offline = {f"HF_{what}_OFFLINE": "1" for what in ("HUB", "DATASETS", "EVALUATE")}
    tasks = ",".join(f"surgery_{name}" for name in FRAMES)
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
        f"pretrained={smollm2},dtype=float32,max_length=2048", "--tasks", tasks, "--include_path",
        str(tmp_path), "--device", "cpu", "--batch_size", "16", "--log_samples", "--output_path",
        str(tmp_path / "found"),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **offline, "HF_HOME": str(tmp_path / "hf")}, cwd=tmp_path,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    model = load(smollm2, device="cpu")
    suite = Suite.model_construct(name="s", folder=str(tmp_path))
    (results,) = (tmp_path / "found").rglob("results_*.json")
    accuracy = json.loads(results.read_text())["results"]
    for name in FRAMES:
        (file,) = (tmp_path / "found").rglob(f"samples_surgery_{name}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        options = {"pairs": {"lead": " "}, "choice": {"suffix": "\nAnswer:"}}.get(name, {})
        content = {"name": name, "kind": name, "file": f"{name}.jsonl", "options": options}
        part = TaskPart.model_validate(content)
        task = read_task(suite, part)
        theirs = [[float(r[0]) for r in sample["filtered_resps"]] for sample in samples]
        for item, wanted in zip(task.items, theirs, strict=True):
            found = [s.total for s in answer_logprobs(model, item.pairs, item.join)]
            assert found == pytest.approx(wanted, abs=2e-4), item
        right = [outcome.right for outcome in run_tasks(model, [task])[name]]
        assert right == [bool(sample["acc"]) for sample in samples]
        assert sum(right) / len(right) == accuracy[f"surgery_{name}"]["acc,none"]
    choice = read_task(suite, TaskPart(name="h", kind="harness", file="choice.jsonl"))
    (file,) = (tmp_path / "found").rglob("samples_surgery_choice_*.jsonl")
    samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda s: s["doc_id"])
    assert [right for right, _ in run_harness(model, choice)] == [bool(s["acc"]) for s in samples]

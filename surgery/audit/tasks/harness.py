"""A task through lm-evaluation-harness, in this process and offline, so that figures compare with
everybody else's.

The items are those the suite takes; the harness frames, batches and scores them. A suite gives the
frame in `options`, under the harness's own field names (doc_to_text, doc_to_choice, doc_to_target,
target_delimiter, ...); the default is a multiple-choice question from query, choices and gold.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from surgery.audit.tasks.items import Task
from surgery.errors import SurgeryError
from surgery.model import Model

_DEFAULTS = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
}


def run_harness(model: Model, task: Task) -> list[tuple[bool, str]]:
    """(right, what was preferred) for every item, by the harness's `acc` (`options: {metric: ...}`).

    Raises:
        SurgeryError: the harness cannot run the task as the suite frames it.
    """
    options = dict(task.part.options)
    metric = options.pop("metric", "acc")
    rows = [dict(item.row) for item in task.items]
    with _offline(), _ties_as_they_are(model):
        import lm_eval
        from datasets import Dataset
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        config: dict[str, Any] = {
            "task": f"surgery_{task.name}",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "metric_list": [{"metric": metric}],
            "metadata": {"version": 1.0},
            **_DEFAULTS,
            **options,
        }
        window = int(getattr(model.hf.config, "max_position_embeddings", 2048) or 2048)
        wrapper: Any = HFLM
        lm = wrapper(
            pretrained=model.hf,
            tokenizer=model.tokenizer,
            batch_size=16,
            max_length=min(2048, window),
        )
        try:
            # The harness annotates its arguments and results more narrowly than it uses them.
            evaluate: Any = lm_eval.simple_evaluate
            found = evaluate(
                model=lm,
                tasks=[config],
                task_manager=TaskManager(include_defaults=False),
                num_fewshot=0,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SurgeryError(f"lm-eval cannot run the task {task.name}: {error!r}") from None
    samples = sorted(found["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    return [(bool(sample[metric]), _preferred(sample)) for sample in samples]


def _preferred(sample: dict[str, Any]) -> str:
    """The likeliest of the continuations the harness scored."""
    scores = [response[0] for response in sample["filtered_resps"]]
    best = max(range(len(scores)), key=lambda i: scores[i])
    return str(sample["arguments"][best][1]).strip()


@contextlib.contextmanager
def _ties_as_they_are(model: Model) -> Iterator[None]:
    """HFLM calls `tie_weights()`: an edit that split the head from the embedding would be undone."""
    config = model.hf.config
    before = getattr(config, "tie_word_embeddings", False)
    config.tie_word_embeddings = model.tied
    try:
        yield
    finally:
        config.tie_word_embeddings = before


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """No look at the hub, and no talk on standard error."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

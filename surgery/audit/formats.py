"""Public data sets as they are published, row by row in the field names of our tasks.

A suite names one with `format`; where a file only calls its fields otherwise, `fields` is enough. Frames
are those of lm-evaluation-harness where it has the task, so that figures mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from surgery.errors import SurgeryError

Row = dict[str, Any]
Format = Literal["mmlu", "tofu", "truthfulqa", "xcopa"]

# "because" and "so", by language.
_CONNECTORS = {
    "et": ("sest", "seetõttu"),
    "ht": ("poukisa", "donk sa"),
    "id": ("karena", "maka"),
    "it": ("perché", "quindi"),
    "qu": ("imataq", "chaymi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "ta": ("காரணமாக", "எனவே"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
}


def mmlu(row: Row, _options: Mapping[str, Any]) -> Row:
    """Hendrycks et al. 2021: the choices are listed, the answer is a letter."""
    letters = "ABCDEFGHIJ"[: len(row["choices"])]
    listed = "\n".join(f"{a}. {c}" for a, c in zip(letters, row["choices"], strict=True))
    answer = row["answer"]
    gold = letters.index(answer) if isinstance(answer, str) and answer in letters else int(answer)
    subject = str(row.get("subject", "")).replace("_", " ")
    about = f" about {subject}" if subject else ""
    head = f"The following are multiple choice questions (with answers){about}.\n\n"
    query = f"{head}{str(row['question']).strip()}\n{listed}\nAnswer:"
    return {**row, "query": query, "choices": list(letters), "gold": gold}


def truthfulqa(row: Row, _options: Mapping[str, Any]) -> Row:
    """Lin et al. 2022, the table of the authors as MC1: the best answer against the incorrect ones. Asked
    straight away, without the six answered questions that others put before."""
    wrong = [part.strip() for part in row["Incorrect Answers"].split(";") if part.strip()]
    best = row["Best Answer"].strip()
    return {**row, "query": f"Q: {row['Question']}\nA:", "choices": [best, *wrong], "gold": 0}


def tofu(row: Row, _options: Mapping[str, Any]) -> Row:
    """Maini et al. 2024: the answer (paraphrased where the file says so) against perturbed ones. Plain
    question-answer files only make text."""
    question, answer = row["question"], row["answer"]
    made = {**row, "text": f"{question} {answer}"}
    if "perturbed_answer" in row:
        right = row.get("paraphrased_answer", answer)
        made |= {"query": f"Question: {question}\nAnswer:", "gold": 0}
        made["choices"] = [right, *row["perturbed_answer"]]
    return made


def xcopa(row: Row, options: Mapping[str, Any]) -> Row:
    """Ponti et al. 2020: premise, "because" or "so", and two ways to go on. options: language."""
    because, so = _CONNECTORS[options["language"]]
    connector = {"cause": because, "effect": so}[row["question"]]
    choices = [row[name][0].lower() + row[name][1:] for name in ("choice1", "choice2")]
    query = f"{row['premise'].strip()[:-1]} {connector}"
    return {**row, "query": query, "choices": choices, "gold": row["label"]}


FORMATS: dict[str, Callable[[Row, Mapping[str, Any]], Row]] = {
    "mmlu": mmlu,
    "tofu": tofu,
    "truthfulqa": truthfulqa,
    "xcopa": xcopa,
}


def wikitext(content: str, least: int = 200) -> list[str]:
    """Paragraphs of a WikiText file with the spaces of its tokens taken back; headings, short ones and
    those with words cut out (<unk>) are left out."""
    lines = [line.strip() for line in content.splitlines()]
    kept = [line for line in lines if len(line) >= least and not line.startswith("=")]
    return [_joined_up(line) for line in kept if "<unk>" not in line]


def _joined_up(text: str) -> str:
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    return text.replace(" n't", "n't").replace(" 's", "'s").replace("s ' ", "s' ")


def converted(row: Row, name: str | None, options: Mapping[str, Any]) -> Row:
    """The row in our field names; as it is without a format.

    Raises:
        SurgeryError: it is not of that format.
    """
    if name is None:
        return row
    try:
        return FORMATS[name](row, options)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SurgeryError(f"not a row of {name} as published ({error!r})") from None

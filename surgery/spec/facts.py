"""A fact to change, and the lists of facts people have on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from surgery.errors import SurgeryError


class Fact(BaseModel):
    """One request: after the edit, `prompt` about `subject` continues with `target`.

    `prompt` holds exactly one `{}` for the subject, or contains the subject literally, once. The
    optional fields are only measured: paraphrases should give the new answer too, neighbours (other
    subjects) should keep theirs.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    prompt: str
    subject: str = Field(min_length=1)
    target: str = Field(min_length=1, validation_alias=AliasChoices("target", "target_new"))
    target_true: str | None = None
    paraphrase_prompts: tuple[str, ...] = Field(default=(), strict=False)
    neighborhood_prompts: tuple[str, ...] = Field(default=(), strict=False)
    neighborhood_targets: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _subject_in_prompt(self) -> Fact:
        subject, prompt = self.subject.strip(), self.prompt
        if not subject or not self.target.strip():
            raise ValueError("subject and target must not be blank")
        braces = prompt.count("{}")
        if braces > 1:
            raise ValueError(f"prompt {prompt!r} has more than one {{}}")
        if braces == 0:
            found = prompt.count(subject)
            if found == 0:
                raise ValueError(
                    f"prompt {prompt!r} does not contain its subject {subject!r}: "
                    "write {} where the subject stands"
                )
            if found > 1:
                raise ValueError(
                    f"prompt {prompt!r} contains {subject!r} more than once: "
                    "write {} where the subject stands"
                )
        if self.neighborhood_targets and len(self.neighborhood_targets) != len(
            self.neighborhood_prompts
        ):
            raise ValueError(
                f"{len(self.neighborhood_prompts)} neighborhood_prompts but "
                f"{len(self.neighborhood_targets)} neighborhood_targets: give one for each"
            )
        return self

    @property
    def template(self) -> str:
        """The prompt with `{}` where the subject stands."""
        if "{}" in self.prompt:
            return self.prompt
        return self.prompt.replace(self.subject.strip(), "{}")

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.template.replace("{}", self.subject.strip())

    def filled(self, prompt: str) -> str:
        """A paraphrase with the subject in place (paraphrases may be templates or plain text)."""
        return prompt.replace("{}", self.subject.strip())

    @property
    def id(self) -> str:
        record = json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()


def read_facts(path: str | Path) -> list[Fact]:
    """Facts from a file: our .jsonl, or CounterFact, zsRE and MQuAKE as published.

    Raises:
        SurgeryError: no such file, not JSON, a record no format matches; names the record.
    """
    return list(stream_facts(path))


def stream_facts(path: str | Path) -> Iterator[Fact]:
    """Like `read_facts`, one at a time; a .jsonl file is never held in memory."""
    path = Path(path)
    empty = True
    for where, record in _records(path):
        for fact in _facts_of(record, where):
            empty = False
            yield fact
    if empty:
        raise SurgeryError(f"{path} holds no facts")


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            if first == "[":
                file.seek(0)
                try:
                    records = json.load(file)
                except json.JSONDecodeError as error:
                    raise SurgeryError(f"{path} is not JSON: {error}") from None
                for number, record in enumerate(records):
                    yield f"{path}, record {number}", record
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield f"{path}, line {number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise SurgeryError(f"{path}, line {number} is not JSON: {error}") from None
    except FileNotFoundError:
        raise SurgeryError(f"no facts file {path}") from None
    except UnicodeDecodeError:
        raise SurgeryError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise SurgeryError(f"cannot read {path}: {error.strerror}") from None


def _facts_of(record: Any, where: str) -> list[Fact]:
    if not isinstance(record, dict):
        raise SurgeryError(f"{where}: a fact is an object with prompt, subject and target")
    try:
        return [Fact.model_validate(fields) for fields in _published(record)]
    except ValidationError as error:
        raise SurgeryError(f"{where}: {first_problem(error)}") from None
    except (KeyError, IndexError, TypeError) as error:
        raise SurgeryError(f"{where}: unexpected form of record ({error!r})") from None


def _published(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of `Fact` out of a record in one of the published forms."""
    rewrite = record.get("requested_rewrite")
    if isinstance(rewrite, list):  # MQuAKE: several rewrites a case
        return [_rewrite(r, {}) for r in rewrite]
    if isinstance(rewrite, dict):  # CounterFact
        return [_rewrite(rewrite, record)]
    if "src" in record and "alt" in record:  # zsRE as re-released by MEND
        return [
            {
                "prompt": record["src"],
                "subject": record["subject"],
                "target": record["alt"],
                "target_true": (record.get("answers") or [record.get("pred")])[0],
                "paraphrase_prompts": [record["rephrase"]] if record.get("rephrase") else [],
                "neighborhood_prompts": [_question(record["loc"])] if record.get("loc") else [],
                "neighborhood_targets": [record["loc_ans"]] if record.get("loc") else [],
            }
        ]
    if "rephrase_prompt" in record or "locality_prompt" in record:  # EasyEdit's flat CounterFact
        flat = {
            "prompt": record["prompt"],
            "subject": record["subject"],
            "target": record["target_new"],
            "target_true": record.get("ground_truth"),
        }
        if record.get("rephrase_prompt"):
            flat["paraphrase_prompts"] = [record["rephrase_prompt"]]
        if record.get("locality_prompt"):
            flat["neighborhood_prompts"] = [record["locality_prompt"]]
            flat["neighborhood_targets"] = [record["locality_ground_truth"]]
        return [flat]
    known = {*Fact.model_fields, "target_new"}
    return [{key: value for key, value in record.items() if key in known}]


def _rewrite(rewrite: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    true = (rewrite.get("target_true") or {}).get("str")
    neighbours = record.get("neighborhood_prompts") or []
    return {
        "prompt": rewrite["prompt"],
        "subject": rewrite["subject"],
        "target": rewrite["target_new"]["str"],
        "target_true": true,
        "paraphrase_prompts": record.get("paraphrase_prompts") or [],
        "neighborhood_prompts": neighbours,
        # CounterFact's neighbours are subjects that share the old answer.
        "neighborhood_targets": [true] * len(neighbours) if true else [],
    }


def _question(text: str) -> str:
    text = text.removeprefix("nq question: ").strip()
    return text if text.endswith("?") else text + "?"


def first_problem(error: ValidationError) -> str:
    """The first complaint of pydantic, in one line, with the place it is about."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def conflicts(facts: list[Fact]) -> list[tuple[Fact, Fact]]:
    """Pairs that ask for different answers to the same prompt about the same subject."""
    seen: dict[tuple[str, str], Fact] = {}
    found = []
    for fact in facts:
        key = (fact.template.strip().casefold(), fact.subject.strip().casefold())
        earlier = seen.setdefault(key, fact)
        if earlier.target.strip() != fact.target.strip():
            found.append((earlier, fact))
    return found

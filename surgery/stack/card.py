"""The model card of an edited checkpoint: that it is edited, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEGIN = "<!-- surgery: begin -->"
END = "<!-- surgery: end -->"


def model_card(
    record: Mapping[str, Any], metadata: Sequence[Mapping[str, Any]], base_card: str
) -> str:
    """README.md of an edited folder: our section first, then the base's own card.

    record: the folder's surgery.json. metadata: of each delta of the stack.
    """
    front, body = _front_matter(base_card)
    lines = [
        *_with_tag(front),
        BEGIN,
        "# This checkpoint is edited",
        "",
        f"It is the checkpoint `{record['base']}` (id `{record['base_id'][:12]}`) with "
        f"{_count(len(record['edits']), 'edit')} made after training. Its answers differ from "
        "the base's on purpose.",
        "",
        "| | edit | what it does | tensors | id |",
        "|---|---|---|---|---|",
    ]
    for number, (entry, meta) in enumerate(zip(record["edits"], metadata, strict=True), start=1):
        lines.append(
            f"| {number} | {entry['name']} | {describe(meta)} | {entry['tensors']} | "
            f"`{entry['id'][:12]}` |"
        )
    audit = record.get("audit")
    if audit:
        lines += [
            "",
            f"Audit: **{audit.get('verdict', 'none')}**. {audit.get('reason', '')}".rstrip(),
        ]
    lines += [
        "",
        "The deltas lie in `deltas/`, with the original bytes of every tensor they touch. "
        "`surgery undo` gives the base back byte for byte; `surgery show` says more.",
        END,
        "",
    ]
    return "\n".join(lines) + (f"\n{body.lstrip()}" if body.strip() else "")


def describe(metadata: Mapping[str, Any]) -> str:
    """What a delta does, in a few plain words, from the spec it holds."""
    said = [_describe_edit(edit) for edit in (metadata.get("spec") or {}).get("edits", [])]
    return "; ".join(said).replace("|", "\\|") or "weight changes without a spec"


def _describe_edit(edit: Mapping[str, Any]) -> str:
    kind, facts = edit.get("kind", "?"), edit.get("facts")
    if isinstance(facts, list) and facts:
        first = facts[0]
        text = first["prompt"].replace("{}", first["subject"])
        more = f" and {len(facts) - 1} more" if len(facts) > 1 else ""
        return f"{kind}: “{text}” → “{first['target']}”{more}"
    if kind == "ablate":
        strength = edit.get("strength", 1.0)
        verb = "changes a direction by"
        if isinstance(strength, int | float):
            verb = "amplifies a direction," if strength < 0 else "removes a direction,"
        return f"ablate: {verb} strength {strength}"
    if kind == "delta":
        return f"delta: weight changes from elsewhere, scale {edit.get('scale', 1.0)}"
    return kind


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _front_matter(card: str) -> tuple[list[str], str]:
    lines = card.splitlines()
    if lines and lines[0].strip() == "---":
        for index, line in enumerate(lines[1:], start=1):
            if line.strip() == "---":
                return lines[1:index], "\n".join(lines[index + 1 :]) + "\n"
    return [], card


def _with_tag(front: list[str]) -> list[str]:
    kept = [line for line in front if not line.startswith("surgery_edited:")]
    return ["---", *kept, "surgery_edited: true", "---", ""]

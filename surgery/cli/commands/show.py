"""`surgery show`: what a spec, delta, direction, checkpoint, adapter or report is."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.cli.outcome import Outcome
from surgery.errors import SurgeryError

if TYPE_CHECKING:
    from surgery.checkpoint import Checkpoint

HELP = "what a spec, delta, checkpoint folder, direction or report is"

# Checkpoints up to this size are hashed without being asked to: a second at most.
_SMALL = 1_000_000_000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery show`."""
    parser.add_argument("path", metavar="PATH", help="a file or folder")
    parser.add_argument(
        "--id", action="store_true", help="the id of a large checkpoint too (reads all of it)"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Look at the headers; torch is not needed."""
    path = Path(args.path).expanduser()
    if not path.exists():
        raise SurgeryError(f"no such file or folder: {path}")
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            return _adapter(path)
        return _checkpoint(path, args.id)
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix in (".yaml", ".yml"):
        return _spec(path)
    if path.suffix == ".json":
        return _report(path) if _is_report(path) else _spec(path)
    raise SurgeryError(
        f"{path} is neither a spec (.yaml, .json), a delta or direction (.safetensors), a report "
        "(.json) nor a checkpoint folder"
    )


# ---------------------------------------------------------------------- folders
def _checkpoint(path: Path, with_id: bool) -> Outcome:
    from surgery.architecture import for_config
    from surgery.checkpoint import Checkpoint
    from surgery.checkpoint.space import in_bytes
    from surgery.stack import read_record

    checkpoint = Checkpoint.open(path)
    record = read_record(path)
    config = checkpoint.config
    size = sum(ref.nbytes for ref in checkpoint.tensors.values())
    numbers = sum(math.prod(ref.shape) for ref in checkpoint.tensors.values())
    data: dict[str, Any] = {
        "what": "checkpoint",
        "path": str(path),
        "id": checkpoint.id if with_id or size <= _SMALL else None,
        "model_type": config.get("model_type"),
        "dtype": checkpoint.dtype,
        "parameters": numbers,
        "bytes": size,
        "tensors": len(checkpoint.tensors),
        "shards": len(checkpoint.shards),
        "tied_embeddings": checkpoint.tied_embeddings,
        "edited": bool(record),
    }
    try:
        table = for_config(config)
        data |= {
            "architecture": table.name,
            "layers": table.n_layers(config),
            "hidden_size": table.hidden_size(config),
        }
        known = f"{data['layers']} layers, hidden size {data['hidden_size']}"
    except SurgeryError as error:
        data["architecture"] = None
        known = str(error)
    tied = "tied embeddings" if data["tied_embeddings"] else "an output head of its own"
    many = f" in {data['shards']} shards" if data["shards"] > 1 else ""
    lines = [
        f"{path}: {'edited ' if record else ''}checkpoint, {data['model_type']}",
        f"  {known}",
        f"  {numbers:,} parameters, {data['tensors']} tensors, mostly {data['dtype']}, "
        f"{in_bytes(size)}{many}, {tied}",
        f"  id {data['id'] or 'not computed: say --id'}",
    ]
    if record:
        data["base_id"], data["base"] = record["base_id"], record.get("base")
        data["edits"], data["audit"] = _edits(checkpoint, record), record.get("audit")
        lines.append(f"  made from {record.get('base')}, id {record['base_id']}")
        for number, edit in enumerate(data["edits"], start=1):
            lines.append(f"  edit {number}  {edit['id'][:12]}  {edit['name']}: {edit['does']}")
            if edit["stack"]:
                below = ", ".join(one[:12] for one in edit["stack"])
                lines.append(f"          solved on top of {below}")
        audit = record.get("audit")
        if audit:
            decision = audit.get("verdict") or audit.get("decision")  # its older name
            lines.append(f"  audit   {decision}: {audit.get('reason')}")
    return Outcome(data=data, text="\n".join(lines))


def _edits(checkpoint: Checkpoint, record: dict[str, Any]) -> list[dict[str, Any]]:
    from surgery.delta import read_delta_header
    from surgery.stack.card import describe

    found = []
    for entry in record["edits"]:
        head, _ = read_delta_header(checkpoint.path / entry["file"])
        found.append({**entry, "does": describe(head)})
    return found


def _adapter(path: Path) -> Outcome:
    from surgery.checkpoint.index import read_json

    config = read_json(path / "adapter_config.json")
    data = {
        "what": "adapter",
        "path": str(path),
        "base": config.get("base_model_name_or_path"),
        "kind": config.get("peft_type"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "modules": config.get("target_modules"),
    }
    modules = data["modules"]
    names = ", ".join(sorted(modules)) if isinstance(modules, list) else modules
    text = (
        f"{path}: adapter, {data['kind']}, rank {data['rank']}, alpha {data['alpha']}\n"
        f"  of {data['base']}\n"
        f"  on {names}"
    )
    return Outcome(data=data, text=text)


# ---------------------------------------------------------------------- safetensors files
def _tensors(path: Path) -> Outcome:
    import json

    from surgery.checkpoint import read_header

    _, metadata = read_header(path)
    try:
        head = json.loads(metadata.get("surgery", "null"))
    except ValueError:
        head = None
    if isinstance(head, dict) and str(head.get("format", "")).startswith("direction/"):
        return _direction(path, head)
    return _delta(path)


def _direction(path: Path, head: dict[str, Any]) -> Outcome:
    data = {"what": "direction", "path": str(path), **head}
    sets = [
        f"{head[name]['count']} {name}"
        for name in ("positive", "negative", "spare")
        if isinstance(head.get(name), dict) and "count" in head[name]
    ]
    lines = [
        f"{path}: direction, read at the {head.get('site', 'input of the layer')} "
        f"{head.get('layer')}, token {head.get('position')} from the prompt's end",
        f"  for the base {str(head.get('base_id'))[:12]}",
        f"  {head.get('method', 'no method on record')}"
        + (f", from {' and '.join(sets)} prompts" if sets else ""),
    ]
    return Outcome(data=data, text="\n".join(lines))


def _delta(path: Path) -> Outcome:
    from surgery.checkpoint.space import in_bytes
    from surgery.delta import read_delta_header
    from surgery.stack.card import describe

    head, shapes = read_delta_header(path)
    data = {"what": "delta", "path": str(path), "does": describe(head), **head, "tensors": shapes}
    lines = [
        f"{path}: delta, {in_bytes(path.stat().st_size)}",
        f"  {describe(head)}",
        f"  id {head.get('id')}",
        f"  for the base {head['base_id']}",
    ]
    if head.get("stack"):
        lines.append(f"  solved on top of {', '.join(one[:12] for one in head['stack'])}")
    if head.get("untie"):
        lines.append("  gives the tied output head a tensor of its own")
    for edit in head.get("diagnostics") or []:
        lines += [f"  {line}" for line in _diagnosis(edit)]
    for key, shape in shapes.items():
        rank = f"rank {shape['rank']}" if "rank" in shape else "dense"
        lines.append(f"  {key}  {tuple(shape['shape'])}  {rank}")
    return Outcome(data=data, text="\n".join(lines))


def _diagnosis(edit: dict[str, Any]) -> list[str]:
    """What the solve saw of one edit, as far as it is worth a line."""
    lines = []
    for fact in edit.get("facts") or []:
        if isinstance(fact, dict) and "probability" in fact:
            lines.append(
                f"{edit.get('kind')}: {fact.get('subject')} -> {fact.get('target')}, probability "
                f"{fact['probability']:.3f} after {fact.get('steps')} steps"
            )
    if isinstance(edit.get("direction"), dict):
        place = edit["direction"]
        lines.append(
            f"{edit.get('kind')}: direction of layer {place.get('layer')}, token "
            f"{place.get('position')}, out of {edit.get('writers')} writers"
        )
    lines += [f"note: {warning}" for warning in edit.get("warnings") or []]
    return lines


# ---------------------------------------------------------------------- specs and reports
def _spec(path: Path) -> Outcome:
    from surgery.spec import EditSpec
    from surgery.stack.card import describe

    spec = EditSpec.load(path)
    content = spec.compact()
    data = {"what": "spec", "path": str(path), "id": spec.id, "spec": content}
    lines = [f"{path}: spec{f' {spec.name}' if spec.name else ''}", f"  id {spec.id}"]
    if spec.base:
        lines.append(f"  for {spec.base}")
    lines += [
        f"  {number}  {describe({'spec': {'edits': [edit]}})}"
        for number, edit in enumerate(content["edits"], start=1)
    ]
    limits = ", ".join(f"{name} {value:g}" for name, value in spec.checks.limits.items())
    if limits or spec.checks.suite:
        lines.append(f"  checks  suite {spec.checks.suite or 'quick'}; {limits or 'no own limits'}")
    return Outcome(data=data, text="\n".join(lines))


def _is_report(path: Path) -> bool:
    import json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "schema_version" in content


def _report(path: Path) -> Outcome:
    import json

    from surgery.audit import Report

    report = Report.load(path)
    sides = f"{report.base.path} and {report.edited.path or 'an edit of it'}"
    text = f"{path}: report of the suite {report.suite}, {report.created}\n  of {sides}\n\n"
    data = {"what": "report", "path": str(path), **json.loads(report.to_json())}
    return Outcome(data=data, text=text + report.text())

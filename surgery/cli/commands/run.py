"""`surgery run`: solve, apply, audit; what the model said before and says after."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.cli.inputs import suite_arguments
from surgery.cli.outcome import DONE, REJECTED, Outcome

if TYPE_CHECKING:
    from surgery.audit import Report
    from surgery.quick import EditResult

HELP = "solve a spec, audit it, write the edited checkpoint; shows before and after"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery run`."""
    parser.add_argument("spec", metavar="SPEC", help="the edit, as YAML or JSON")
    parser.add_argument("--base", metavar="DIR", help="the checkpoint (default: the spec's base)")
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument(
        "--gate",
        action="store_true",
        help="a rejected edit leaves OUT.delta.safetensors and OUT.report.*, no checkpoint, and "
        "exit code 3",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing checkpoint")
    suite_arguments(parser)
    parser.add_argument("--prompts", metavar="FILE", help="more prompts to answer, one a line")
    parser.add_argument(
        "--link",
        choices=["reflink", "copy", "hard"],
        default="reflink",
        help="how untouched files get there (default: share blocks where the disk can, else copy)",
    )
    parser.add_argument("--device", help="where to compute (default: CUDA, else MPS, else CPU)")


def run(args: argparse.Namespace) -> Outcome:
    """Do all of it with one loaded model."""
    from surgery.audit.suite import Suite
    from surgery.audit.verdict import check_limits
    from surgery.cli.inputs import base_of, check_new_folder
    from surgery.spec import EditSpec, read_prompts

    # Whatever can be wrong with the input is found before the long work.
    spec = EditSpec.load(args.spec)
    base = base_of(args.base, spec, args.spec)
    check_new_folder(args.out, args.overwrite, base)
    suite = Suite.load(args.suite or spec.checks.suite or "quick", args.data)
    check_limits(spec.checks.limits)
    prompts = read_prompts(args.prompts) if args.prompts else []

    from surgery.model import load
    from surgery.quick import perform

    result = perform(load(base, device=args.device), spec)
    report = result.audit(suite, prompts)
    out = Path(args.out)
    if args.gate and report.verdict.decision == "reject":
        return _told(report, result, out, _leave_evidence(out, result, report), REJECTED)
    return _told(report, result, out, _write(out, base, result, report, args), DONE)


def _write(
    out: Path, base: Path, result: EditResult, report: Report, args: argparse.Namespace
) -> dict[str, str]:
    """The edited folder, with the report and the spec as it was solved inside."""
    from surgery.spec import EditSpec
    from surgery.stack import apply

    apply(
        [result.delta],
        base=base,
        out=out,
        overwrite=args.overwrite,
        link=args.link,
        files={
            "report.html": report.html(),
            "report.json": report.to_json(),
            "spec.yaml": EditSpec.model_validate(result.delta.metadata["spec"]).to_yaml(),
        },
        audit=report.summary(),
    )
    [delta] = sorted((out / "deltas").glob(f"*{result.delta.id[:12]}*"))
    return {"checkpoint": str(out), "delta": str(delta), "report": str(out / "report.html")}


def _leave_evidence(out: Path, result: EditResult, report: Report) -> dict[str, str]:
    """What a rejected edit leaves: enough to see why, nothing that could be used by mistake."""
    from surgery.delta import SUFFIX, save_delta

    page, data = Path(f"{out}.report.html"), Path(f"{out}.report.json")
    delta = save_delta(result.delta, Path(f"{out}{SUFFIX}"))
    report.save(page)
    report.save(data)
    return {"delta": str(delta), "report": str(page)}


def _told(
    report: Report, result: EditResult, out: Path, written: dict[str, str], code: int
) -> Outcome:
    from surgery.cli.summary import summary

    data: dict[str, Any] = {
        "verdict": report.verdict.decision,
        "reason": report.verdict.reason,
        "written": written,
        "delta_id": result.delta.id,
        "base_id": result.delta.base_id,
        "answers": [answer.model_dump() for answer in report.answers],
        "warnings": result.warnings,
        "report": json.loads(report.to_json()),
    }
    lines = [summary(report, result.delta.metadata), ""]
    lines += [f"note: {warning}" for warning in result.warnings]
    if code == REJECTED:
        lines.append(f"no checkpoint was written to {out}")
    lines += [f"{what:<10}  {path}" for what, path in written.items()]
    return Outcome(data=data, text="\n".join(lines), code=code)

"""`surgery flinch`: who refuses, hedges or answers what, side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from surgery.cli.outcome import Outcome

HELP = "who refuses, hedges or answers what, side by side"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `surgery flinch`."""
    parser.add_argument(
        "checkpoints",
        metavar="DIR",
        nargs="+",
        help="checkpoint folders or delta files; the others are compared with the first",
    )
    parser.add_argument("--base", metavar="DIR", help="what deltas go on (default: the first DIR)")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        action="append",
        help="XSTest, OR-Bench, .csv, .jsonl or .txt, or KIND=FILE with kind safe_scary, unsafe or "
        "harmless; may be repeated (default: our own set)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N prompts of each kind")
    parser.add_argument(
        "--tokens", type=int, default=64, help="longest answer (default: 64; at least 60 is wise)"
    )
    parser.add_argument("--system", metavar="TEXT", help="the system prompt of the second round")
    parser.add_argument("--no-system", action="store_true", help="leave the second round out")
    parser.add_argument("--no-damage", action="store_true", help="do not measure KL and perplexity")
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help=".jsonl of prompt, answer, label: also measure the scorer on these labels of yours",
    )
    parser.add_argument(
        "--answers", metavar="FILE", help="write every answer and its label, .jsonl"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Run the test and print rates, paired tests and headline."""
    from surgery.errors import SurgeryError
    from surgery.flinch import sets

    items = sets.read_all(args.prompts)
    if args.limit is not None:
        if args.limit < 1:
            raise SurgeryError(f"--limit {args.limit}: at least 1")
        items = sets.limited(items, args.limit)
    if args.tokens < 1:
        raise SurgeryError(f"--tokens {args.tokens}: at least 1")
    for source in args.checkpoints:
        if not Path(source).exists():
            raise SurgeryError(f"no checkpoint or delta {source}")

    from surgery.flinch.measure import SYSTEM, flinch
    from surgery.flinch.table import table

    result = flinch(
        args.checkpoints,
        items,
        base=args.base,
        system=None if args.no_system else args.system or SYSTEM,
        tokens=args.tokens,
        damage=not args.no_damage,
    )
    data, text = result.data(), table(result)
    if args.labels:
        data["scorer_on_labels"], line = _measured(args.labels)
        text += f"\n{line}"
    if args.answers:
        from surgery.checkpoint import atomic_file

        with atomic_file(Path(args.answers)) as temporary:
            lines = [json.dumps(row, ensure_ascii=False) for row in data["answers"]]
            Path(temporary).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Outcome(data, text)


def _measured(file: str) -> tuple[dict[str, object], str]:
    """The scorer on somebody's labels."""
    from surgery.errors import SurgeryError
    from surgery.measure.scorer import LABELS, measure
    from surgery.spec.prompts import read_records

    rows = read_records(file)
    for number, row in enumerate(rows, start=1):
        if row.get("label") not in LABELS or not isinstance(row.get("answer"), str):
            raise SurgeryError(
                f"{file}, row {number} needs an answer and a label ({', '.join(LABELS)})"
            )
    found = measure([r["answer"] for r in rows], [r["label"] for r in rows])

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    parts = [
        f"{name} {shown(found[name]['precision'])} / {shown(found[name]['recall'])}"
        for name in ("refusal", "full", "partial")
    ]
    return found, f"scorer, on the {found['n']} labels of {file}: " + ", ".join(parts)

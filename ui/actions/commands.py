"""Copy as command: what was done on a screen, as the shell commands that do it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from ui.session import Bench


def heredoc(file: str, text: str) -> str:
    """A file made in the shell, its text untouched."""
    mark = "EOF"
    while mark in text:
        mark += "F"
    return f"cat > {shlex.quote(file)} <<'{mark}'\n{text.rstrip()}\n{mark}"


def line(*words: str) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)


def stem(name: str) -> str:
    """A file name out of what an edit is called."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "edit"


def solve_command(bench: Bench, yaml: str, name: str) -> str:
    file = stem(name)
    return "\n".join(
        [
            heredoc(f"{file}.yaml", yaml),
            line("surgery", "run", f"{file}.yaml", "--base", str(bench.path), "-o", f"out/{file}"),
        ]
    )


def stack_files(bench: Bench) -> list[str]:
    """Names under which the deltas of the stack are taken away."""
    from surgery.delta import SUFFIX
    from ui.naming import label

    return [f"{stem(label(delta))}-{delta.id[:8]}{SUFFIX}" for delta in bench.here]


def apply_command(bench: Bench, out: str = "out/edited") -> str:
    files = stack_files(bench)
    if not files:
        return "# nothing is switched on: the model is the checkpoint as it is on disk"
    return line("surgery", "apply", *files, "--base", str(bench.path), "-o", out)


def edited(bench: Bench) -> str:
    """The model as the stack says, as the command line names it: `DIR+DELTA+DELTA`."""
    return "+".join([str(bench.path), *stack_files(bench)])


def answers_command(bench: Bench, prompts: Sequence[str], chat: bool, tokens: int) -> str:
    folders = list(dict.fromkeys([str(bench.path), edited(bench)]))
    words = ["surgery", "answers", *folders, "--prompts", "prompts.txt", "--tokens", str(tokens)]
    text = "\n".join(prompt.replace("\n", " ") for prompt in prompts)
    return "\n".join([heredoc("prompts.txt", text), line(*words, *([] if chat else ["--no-chat"]))])


def audit_command(bench: Bench, suite: str, out: str = "out/edited") -> str:
    return "\n".join(
        [
            apply_command(bench, out),
            line(
                "surgery", "audit", str(bench.path), out, "--suite", suite, "--html", "report.html"
            ),
        ]
    )


def trace_command(bench: Bench, prompt: str, subject: str, answer: str, samples: int) -> str:
    words = [
        "surgery",
        "trace",
        "--base",
        str(bench.path),
        "--prompt",
        prompt,
        "--subject",
        subject,
    ]
    more = ["--answer", answer.strip()] if answer.strip() else []
    return line(*words, *more, "--samples", str(samples))


def flinch_command(bench: Bench, folders: Sequence[str], stack: bool, most: int) -> str:
    out = "out/edited"
    edited = [out] if stack and bench.here else []
    words = ["surgery", "flinch", *folders, *edited, "--limit", str(most), "--no-system"]
    return "\n".join([*([apply_command(bench, out)] if edited else []), line(*words)])

"""What do the statistics cost? All layers in one pass, against a plain forward pass and one pass a layer.

python -m benchmarks.speed.statistics --base weights/smollm2-135m-instruct --tokens 8192
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from surgery.model import by_length, load, pad
from surgery.statistics.collect import BATCH_TOKENS, _rows, collect
from surgery.statistics.text import read_passages, shuffled


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="weights/smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("-o", "--out", type=Path, help="write the table here too")
    args = parser.parse_args()
    model = load(args.base)
    layers = list(range(model.n_layers))
    rows, taken = _rows(model, shuffled(read_passages()), args.tokens)

    def forward() -> None:
        with torch.no_grad():
            for index in by_length([len(row) for row in rows], BATCH_TOKENS):
                model.hf(**pad([rows[i] for i in index], model).inputs(), use_cache=False)

    def timed(work) -> float:  # noqa: ANN001
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    timed(forward)  # warm up
    plain = min(timed(forward) for _ in range(2))
    ours = min(
        timed(lambda: collect(model, layers, tokens=args.tokens, use_store=False)) for _ in range(2)
    )
    single = (
        sum(
            timed(lambda n=n: collect(model, [n], tokens=args.tokens, use_store=False))
            for n in (0, len(layers) // 2, len(layers) - 1)
        )
        / 3
    )
    lines = [
        f"{taken} tokens, {len(layers)} layers, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; base {model.checkpoint.id[:12]}",
        "",
        "| pass | seconds | in plain forward passes |",
        "|---|---|---|",
        f"| plain forward pass | {plain:.1f} | 1.00 |",
        f"| statistics of all layers, one pass | {ours:.1f} | {ours / plain:.2f} |",
        f"| one pass a layer (mean of three, times {len(layers)}) | {single * len(layers):.1f} | "
        f"{single * len(layers) / plain:.1f} |",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

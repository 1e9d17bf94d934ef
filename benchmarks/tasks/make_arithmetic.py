"""Write the arithmetic multiple-choice items of the damage suite, the same ones for the same seed.

Each item is a sum, a difference or a product of small numbers with four choices:
`{"query": "12 + 7 =", "choices": [...], "gold": index}`. The three wrong choices are near the
answer (off by one, two or ten, or by one factor for products), so that a model must compute
rather than judge the size. The position of the right choice is balanced: every index holds it
equally often when the number of items divides by four.

    python make_arithmetic.py [--seed 0] [--items 80] [--out arithmetic.jsonl]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

N_CHOICES = 4


def question(sign: str, rng: random.Random) -> tuple[int, int, int]:
    """Two operands and the answer: differences above zero, products within the times table."""
    if sign == "+":
        a, b = rng.randint(2, 49), rng.randint(2, 49)
        return a, b, a + b
    if sign == "-":
        a = rng.randint(5, 60)
        b = rng.randint(2, a - 1)
        return a, b, a - b
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return a, b, a * b


def distractors(sign: str, a: int, b: int, answer: int, rng: random.Random) -> list[int]:
    """Three different wrong answers close to the right one, none of them negative."""
    near = {answer + step for step in (-10, -2, -1, 1, 2, 10)}
    if sign == "x":
        near |= {answer - a, answer + a, answer - b, answer + b}
    usable = sorted(value for value in near if value >= 0 and value != answer)
    return rng.sample(usable, N_CHOICES - 1)


def items(n: int, seed: int) -> list[dict[str, object]]:
    """`n` different items; signs take turns, and so, in shuffled order, do the gold positions."""
    rng = random.Random(seed)
    golds = [i % N_CHOICES for i in range(n)]
    rng.shuffle(golds)
    made: list[dict[str, object]] = []
    seen: set[str] = set()
    while len(made) < n:
        sign = "+-x"[len(made) % 3]
        a, b, answer = question(sign, rng)
        query = f"{a} {sign} {b} ="
        if query in seen:
            continue
        seen.add(query)
        choices = distractors(sign, a, b, answer, rng)
        gold = golds[len(made)]
        choices.insert(gold, answer)
        made.append({"query": query, "choices": [str(c) for c in choices], "gold": gold})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the arithmetic items of the damage suite.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=80, help="at most 200")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("arithmetic.jsonl"))
    arguments = parser.parse_args()
    if not 1 <= arguments.items <= 200:
        parser.error("--items: choose 1 to 200, there are not enough different products for more")
    lines = [json.dumps(item) for item in items(arguments.items, arguments.seed)]
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

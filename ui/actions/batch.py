"""Many prompts on both sides, the changed ones on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from surgery.errors import SurgeryError
from ui.actions.answers import framed, sides
from ui.highlight import marked
from ui.markup import Raw, esc, state_line
from ui.session import Bench


@dataclass(frozen=True)
class Row:
    """One prompt and both answers. agreement: share of words in common."""

    prompt: str
    before: str
    after: str
    agreement: float

    @property
    def changed(self) -> bool:
        return self.before != self.after


def ask_all(
    bench: Bench, prompts: Sequence[str], chat: bool, tokens: int, against: str = "base"
) -> Callable[[], list[Row]]:
    """The work of answering every prompt on both sides, greedily; most changed first."""

    def work() -> list[Row]:
        from surgery.compare import agreement
        from surgery.model import generate

        if not prompts:
            raise SurgeryError("write some prompts, one a line")
        texts = [framed(bench, prompt, chat) for prompt in prompts]
        said = []
        for name, side in zip(("before", "after"), sides(bench, against), strict=True):
            with side.put_on() as model:
                said.append(
                    generate(model, texts, max_new_tokens=tokens, label=f"answering, {name}")
                )
        rows = [
            Row(prompt, a.strip(), b.strip(), float(agreement(a, b)))
            for prompt, a, b in zip(prompts, *said, strict=True)
        ]
        return sorted(rows, key=lambda row: (not row.changed, row.agreement))

    return work


def batch_html(rows: Sequence[Row], state: str, stamp: str = "") -> str:
    """The table, with a line that counts."""
    changed = sum(row.changed for row in rows)
    body = []
    for row in rows:
        left, right = marked(row.before, row.after)
        same = Raw('<em class="quiet">the same</em>')
        body.append(
            f'<tr class="{"changed" if row.changed else "kept"}"><th scope="row">{esc(row.prompt)}</th>'
            f'<td class="said">{left}</td><td class="said">{right if row.changed else same}</td></tr>'
        )
    return (
        state_line(state, "Asked of the base and of", stamp)
        + f'<p class="finding">{changed} of {len(rows)} answers changed.</p>'
        + '<div class="table batch"><table><thead><tr><th>Prompt</th><th>Before</th><th>After</th></tr>'
        + f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )

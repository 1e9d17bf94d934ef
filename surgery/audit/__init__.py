"""What an edit did and what else it broke: figures, controls, a verdict, a report.

Reports can be read without torch; measuring needs it, so the names are loaded when they are asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.audit.report import Report, Verdict
    from surgery.audit.run import audit
    from surgery.audit.score import AnswerScore, answer_logprobs
    from surgery.audit.suite import Suite

_HOMES = {
    "AnswerScore": "score",
    "Report": "report",
    "Suite": "suite",
    "Verdict": "report",
    "answer_logprobs": "score",
    "audit": "run",
}
__all__ = ["AnswerScore", "Report", "Suite", "Verdict", "answer_logprobs", "audit"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.audit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.audit' has no attribute {name!r}")


class _Callable(ModuleType):
    """`surgery.audit` is this package and, in the public API, the function: `surgery.audit(base, ...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        from surgery.audit.run import audit

        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

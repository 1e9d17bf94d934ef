"""Looking inside: causal traces, the logit lens, projections, next tokens, surprise.

Needs torch, and nnsight only when something is traced, so the names here are loaded when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.trace.causal import CausalTrace, causal_trace
    from surgery.trace.engine import Run, capture, run
    from surgery.trace.lens import LogitLens, Projection, logit_lens, projection
    from surgery.trace.picture import draw, heat_map_text, html, save_picture
    from surgery.trace.sites import Site
    from surgery.trace.tokens import (
        NextToken,
        Surprise,
        next_token_log_probs,
        next_tokens,
        next_tokens_compared,
        surprise,
    )

_HOMES = {
    "CausalTrace": "causal",
    "LogitLens": "lens",
    "NextToken": "tokens",
    "Projection": "lens",
    "Run": "engine",
    "Site": "sites",
    "Surprise": "tokens",
    "capture": "engine",
    "causal_trace": "causal",
    "draw": "picture",
    "heat_map_text": "picture",
    "html": "picture",
    "logit_lens": "lens",
    "next_token_log_probs": "tokens",
    "next_tokens": "tokens",
    "next_tokens_compared": "tokens",
    "projection": "lens",
    "run": "engine",
    "save_picture": "picture",
    "surprise": "tokens",
}
__all__ = [
    "CausalTrace",
    "LogitLens",
    "NextToken",
    "Projection",
    "Run",
    "Site",
    "Surprise",
    "capture",
    "causal_trace",
    "draw",
    "heat_map_text",
    "html",
    "logit_lens",
    "next_token_log_probs",
    "next_tokens",
    "next_tokens_compared",
    "projection",
    "run",
    "save_picture",
    "surprise",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"surgery.trace.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'surgery.trace' has no attribute {name!r}")

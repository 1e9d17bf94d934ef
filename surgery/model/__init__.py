"""A loaded model: loading and its self-test, batches, hooks, answers."""

from surgery.model.batch import Batch, by_length, check_length, pad, tokenize
from surgery.model.load import load
from surgery.model.model import Model
from surgery.model.run import (
    Said,
    chat,
    chat_messages,
    continuation_ids,
    end_tokens,
    generate,
    next_token_logits,
    say,
)
from surgery.model.selftest import selftest

__all__ = [
    "Batch",
    "Model",
    "Said",
    "by_length",
    "chat",
    "chat_messages",
    "check_length",
    "continuation_ids",
    "end_tokens",
    "generate",
    "load",
    "next_token_logits",
    "pad",
    "say",
    "selftest",
    "tokenize",
]

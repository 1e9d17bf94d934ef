"""The one exception a user is meant to read."""

from __future__ import annotations


class SurgeryError(Exception):
    """The input is wrong: one line that says what, where, and what to do.

    The command line prints the message without a traceback and exits with 1.
    """


class Cancelled(Exception):
    """Raised inside a long computation when whoever listens to its progress asked to stop."""

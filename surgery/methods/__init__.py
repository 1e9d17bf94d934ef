"""One file per kind of edit. `solve` turns a spec into a delta."""

from surgery.methods.solve import solve

__all__ = ["solve"]

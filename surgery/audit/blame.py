"""Who did it: see `surgery.audit.attribution`, where these live."""

from surgery.audit.attribution import Share, bisect, leave_one_out

__all__ = ["Share", "bisect", "leave_one_out"]

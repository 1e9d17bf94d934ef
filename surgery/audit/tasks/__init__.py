"""Tasks: what the model can do, item by item, so that base and edited are compared on the same items."""

from surgery.audit.tasks.items import Item, Task, read_task
from surgery.audit.tasks.results import compare
from surgery.audit.tasks.running import Outcome, run_tasks

__all__ = ["Item", "Outcome", "Task", "compare", "read_task", "run_tasks"]

"""Low-rank fine-tuning of a loaded model, for practice models and for methods that train."""

from surgery.training.lora import LoRA, save_adapter
from surgery.training.supervised import Example, examples, train

__all__ = ["Example", "LoRA", "examples", "save_adapter", "train"]

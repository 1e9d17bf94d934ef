"""What leaves the workbench: model cards, LoRA adapters."""

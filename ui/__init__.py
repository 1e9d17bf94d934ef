"""The workbench: a Gradio application on top of `surgery`. Nothing in surgery imports it."""

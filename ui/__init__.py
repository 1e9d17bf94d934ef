"""The Gradio workbench: an application on top of surgery."""

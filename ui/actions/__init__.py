"""What the screens do, as plain functions of a bench: no Gradio in here."""

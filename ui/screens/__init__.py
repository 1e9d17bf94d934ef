"""The screens: layout and events only. What they do is in `ui.actions`."""

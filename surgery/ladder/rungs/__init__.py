"""One module for each family of rungs."""

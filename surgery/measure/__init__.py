"""Measures several rooms share: is an answer a refusal, what did a change cost, do two sides differ."""

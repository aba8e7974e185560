"""A training run: its settings, the audit's gate, its stages one after the other, its folder, its report.

Imports the rooms `model`, `reporting`, `playing`, `rows` and `learning`, which are given what they need: only here are
settings known.
"""

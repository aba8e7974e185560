"""A training run: its settings, the audit's gate, its stages one after the other, its folder, its report.

Imports all rooms but `exporting`, to call them with what the settings say; only here are settings known.
"""

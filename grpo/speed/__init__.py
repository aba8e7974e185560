"""How fast prompts, decoding and credit are: measurements, each with the command that shows it.

Imports what is measured. Nothing imports it.
"""

"""How fast prompts, decoding and credit are: measurements, each with the command that shows it.

Imports the simulator, `prompting` and the rooms `model` and `rows`, which are measured. Nothing imports it.
"""

"""How fast prompts, decoding, credit and learning are: measurements, each with the command that shows it.

Imports the simulator, `prompting` and the rooms `model`, `rows` and `learning`, which are measured. Nothing imports it.
"""

"""How weights change: reward signals, the warm start, GRPO, and what a step shows about it.

Given a model, rows and numbers; knows neither the settings of a run nor its folder. Imports the rooms `model` and
`rows`, the names of the simulator's actions, and `prompting` to read answers.
"""

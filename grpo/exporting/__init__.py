"""A trained adapter for others: merged into its base, written as a model folder and as GGUF, and examined.

Imports the simulator, `prompting`, and the rooms `model`, `playing` and `rows`, from which the states of the exam come.
"""

"""A model as the defender: episodes in lockstep, and its evaluation beside policies that play the same ones.

Imports the simulator, its audit (for the policies to compare to), `prompting`, and the rooms `model` and `reporting`.
"""

"""The audit, pointed outward: does any Gymnasium environment with countable actions pay for reading what it shows?

`episodes` plays plans and policies, `plans` searches what reads nothing, `readers` has what reads, `verdict` compares.
"""

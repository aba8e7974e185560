"""What there is to learn from: states, the prompts that show them, and what every legal action is worth there.

Imports the simulator, its audit (for files of learned policies), `prompting`, and of the room `playing` the play that
states are collected from. `bank` and `credit` need no torch.
"""

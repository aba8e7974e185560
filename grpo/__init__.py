"""A language model at the desk: load it, let it play, measure it, train it by GRPO.

Here lies what a user runs: scripts, presets, a notebook. The rooms, each importing only those before it: `model` (the
model at hand), `reporting`, `playing`, `rows` (what there is to learn from), `exporting`, `learning`, `training` (a run
of all this) and `speed` (measurements).
"""

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # optional kernels are not there

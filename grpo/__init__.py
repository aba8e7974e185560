"""A language model at the desk: load it, let it play, measure it, train it by GRPO."""

import logging

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # optional kernels are not there

"""Version of the simulator's behaviour: it changes exactly when an episode would."""

import re

SIMULATOR_VERSION = "3"
# What presets of rules and rewards of an older version are called now: the same game, tick by tick.
RENAMED = {"1": {"hardened": "hardened1", "operational": "operational1"}, "2": {"hardened": "hardened2"}}


def is_kept(version: object) -> bool:
    """Whether this version plays the games of that one."""
    return version == SIMULATOR_VERSION or version in RENAMED


def name_now(version: str, name: str) -> str:
    """What rules or a reward of a version that `is_kept` are called now; a name's +switches and -switches stay."""
    preset, *changes = re.split("(?=[+-])", name)
    return RENAMED.get(version, {}).get(preset, preset) + "".join(changes)

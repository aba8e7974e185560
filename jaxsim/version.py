"""Version of the simulator's behaviour: it changes exactly when an episode would."""

SIMULATOR_VERSION = "1"

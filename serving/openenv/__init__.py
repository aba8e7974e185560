"""The game as an OpenEnv environment. Needs the extra `openenv`, and an environment of its own; nothing imports it."""

"""jaxsim: enterprise attack chains as pure functional JAX, vmapped over thousands of episodes."""

from jaxsim import programs
from jaxsim.env import Env, make
from jaxsim.names import action_text, parse_action, parse_plan
from jaxsim.policies import BASELINES, Policy
from jaxsim.replays import replay
from jaxsim.rollouts import rollout, rollout_many
from jaxsim.types import Dims, Observation, Params
from jaxsim.version import SIMULATOR_VERSION
from scenarios import load as load_scenario

__all__ = [
    "BASELINES",
    "SIMULATOR_VERSION",
    "Dims",
    "Env",
    "Observation",
    "Params",
    "Policy",
    "action_text",
    "load_scenario",
    "make",
    "parse_action",
    "parse_plan",
    "replay",
    "rollout",
    "rollout_many",
]

programs.keep()

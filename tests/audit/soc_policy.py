"""The investigate-then-contain policy of the audit as a Gymnasium agent has to play it: from what it is shown."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsim
from jaxsim.types import Alerts, Forensics, Observation

SCENARIO = "supply_chain_token_drift"
POLICY, PARAMETERS = jaxsim.BASELINES["evidence"]
ENV, _ = jaxsim.make(SCENARIO, rules="classic")
WHOLE = ("tick", "horizon", "personality")
ACT = jax.jit(partial(POLICY.act, ENV.dims))


def observation(shown: dict[str, np.ndarray]) -> Observation:
    """What `jaxsim.gym.shown` was given: scalars again, and flags."""
    plain = {k: jnp.asarray(v.astype(bool) if v.dtype == np.int8 else v) for k, v in shown.items()}

    def part(kind: Any, prefix: str) -> Any:
        return kind(**{name: plain[f"{prefix}_{name}"] for name in kind._fields})

    parts = {"alerts": part(Alerts, "alerts"), "forensics": part(Forensics, "forensics")}
    return Observation(**parts, **{k: plain[k][0] if k in WHOLE else plain[k] for k in Observation._fields[:-2]})


def evidence() -> Callable[[Any, Any], int]:
    """Makes the policy of an episode."""
    memory = POLICY.init(ENV.dims, PARAMETERS)

    def policy(shown: dict[str, np.ndarray], info: dict[str, Any]) -> int:
        nonlocal memory
        action, memory = ACT(PARAMETERS, memory, observation(shown), np.zeros(2, np.float32))
        return int(action)

    return policy

"""Presets of rules and attacker personalities, as plain values."""

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim.types import Personality, Rules

RULES: dict[str, dict[str, float]] = {
    "classic": {
        "false_negative": 0.15,
        "false_positive": 0.12,
        "patch_penalty": 0.3,
        "background_named": 0.7,
        "load_isolated": 1.0,
        "load_egress": 0.4,
        "load_revoked": 0.3,
    }
}

PERSONALITIES: dict[str, dict[str, float | bool]] = {
    "stealthy": {"dwell": 1.5, "detection": 0.55, "success": -0.05, "pause": 0.50, "reroutes": False},
    "aggressive": {"dwell": 0.6, "detection": 1.30, "success": 0.05, "pause": 0.00, "reroutes": False},
    "opportunistic": {"dwell": 1.0, "detection": 1.00, "success": 0.00, "pause": 0.15, "reroutes": True},
}
ANY = "any"


def rules(name: str) -> Rules:
    """A preset of rules. Raises ValueError for an unknown name."""
    if name not in RULES:
        raise ValueError(f"rules {name!r} are unknown; choose one of {', '.join(RULES)}")
    return Rules(**{k: jnp.float32(v) for k, v in RULES[name].items()})


def personalities(name: str) -> tuple[Personality, Array]:
    """All personalities, fields (P,), and the (P,) probabilities of `name`; "any" draws uniformly at each reset.

    Raises ValueError for an unknown name.
    """
    if name not in (*PERSONALITIES, ANY):
        raise ValueError(f"personality {name!r} is unknown; choose one of {', '.join((*PERSONALITIES, ANY))}")
    rows = list(PERSONALITIES.values())
    table = {
        k: jnp.asarray(np.asarray([r[k] for r in rows]), bool if k == "reroutes" else jnp.float32)
        for k in Personality._fields
    }
    chosen = np.asarray([name in (p, ANY) for p in PERSONALITIES], np.float32)
    return Personality(**table), jnp.asarray(chosen / chosen.sum())

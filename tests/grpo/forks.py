"""States of two campaigns to fork, and what the tests of their credit share."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import scenarios
from grpo.rows import bank as banks
from grpo.rows import credit as credits
from grpo.rows import redeal as redeals
from grpo.rows.bank import Bank
from grpo.rows.credit import Credit
from jaxsim import env, stages
from jaxsim.actions import encode
from jaxsim.compile import dims_of
from jaxsim.policies import BASELINES
from jaxsim.types import (
    BLOCK_EGRESS,
    Params,
    State,
)

CAMPAIGNS = [scenarios.load(n) for n in ("federated_identity_takeover", "insider_repo_pivot")]
DIMS = dims_of(CAMPAIGNS)
ENV = env.Env(DIMS)
KEY = jax.random.key(3)
PARAMETERS = BASELINES["evidence"][1]
FUTURES = 4
play = partial(credits.returns_to_go, DIMS, futures=FUTURES, chunk=8)  # nearly always these: one program to compile


def stacked(rules: str = "hardened1") -> Params:
    return banks.stack([env.make_params(s, DIMS, rules, "operational1", "any") for s in CAMPAIGNS])


HARDENED, CLASSIC = stacked(), stacked("classic")


@cache
def collected() -> Bank:
    return banks.collect_heuristic(ENV, HARDENED, *BASELINES["evidence"], KEY, 40, 3)


def scripted(key: Any) -> Bank:
    """One state of each of 30 episodes of each campaign under the classic rules."""
    return banks.collect_heuristic(ENV, CLASSIC, *BASELINES["heuristic"], key, 30)


def rows_of(campaign: int) -> Params:
    return jax.tree.map(lambda x: x[campaign], HARDENED)


def one(bank: Bank, row: int) -> State:
    return jax.tree.map(lambda x: jnp.asarray(x[row]), bank.state)


def as_bank(states: list[State], index: list[int]) -> Bank:
    n = np.arange(len(states), dtype=np.int32)
    return Bank(jax.tree.map(lambda *x: np.stack(x), *states), np.asarray(index, np.int32), n, n * 0)


observe = jax.jit(partial(env.observe, DIMS))

redeal = jax.jit(partial(redeals.redeal, DIMS))


def before_exfil() -> tuple[State, int]:
    """Nothing in view, all stages but the exfil done and that one running; the action that stops it."""
    state = jax.jit(partial(env.reset, DIMS))(KEY, rows_of(0))
    exfil = int(np.flatnonzero(HARDENED.scenario.stage_exfil[0])[0])
    there = np.asarray(HARDENED.scenario.stage_exists[0])
    done = there.copy()
    done[exfil] = False
    state = state._replace(
        tick=jnp.int32(40),
        attack=jnp.bool_(True),
        idle=jnp.zeros_like(state.idle),
        done=stages.packed(jnp.asarray(done)),
        stage=jnp.int32(exfil),
        stage_end=jnp.int32(43),
        succeeded=jnp.int32(there.sum() - 1),
    )
    return state, int(encode(DIMS, jnp.int32(BLOCK_EGRESS), state.targets[0, exfil]))


def by_hand(q: Any, se: Any) -> Credit:
    q, se = np.asarray(q, np.float32), np.asarray(se, np.float32)
    rows = np.ones(len(q), np.int32)
    return Credit(q, se, ~np.isnan(q), rows * 32, rows)

"""What the baselines choose, in the simulator and in its plain-Python twin."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import CELLS, DIMS, LIFTABLE_DIMS, SCENARIOS, params_of
from parity import PLAN_TICKS, POLICIES, is_close_call, named_action, on_an_edge, twin_policy

from jaxsim import env, policies, twin, twin_rules, twin_state
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.types import (
    Dims,
    Params,
)


@partial(jax.jit, static_argnames=("dims", "policy"))
@partial(jax.vmap, in_axes=(None, None, None, 0))
def choose(dims: Dims, policy: policies.Policy, params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(action, noise) at every tick of an episode played by a policy, (T,) and (T, 16)."""
    nothing = jnp.zeros((), jnp.int32)

    def tick(carry: Any, _: None) -> Any:
        state, memory = carry
        block = tick_noise(key, state.tick + 1)
        action, memory = policy.act(dims, nothing, memory, env.observe(dims, state, params), block[-2:])
        state, _ = env.transition(dims, state, action, block, params)
        return (state, memory), (action, block)

    carry = (start(dims, key, params), policy.init(dims, nothing))
    chosen: tuple[jax.Array, jax.Array] = jax.lax.scan(tick, carry, length=PLAN_TICKS)[1]
    return chosen


@pytest.mark.parametrize(("policy", "dims"), [*((policy, DIMS) for policy in POLICIES), ("random", LIFTABLE_DIMS)])
def test_every_choice_of_a_policy_equals_the_twins(policy: str, dims: Dims) -> None:
    """On the same state and noise, at every tick of every cell."""
    episodes, left_out, verbs = 60, 0, set[str]()
    keys, own = episode_keys(jax.random.key(41), episodes), twin_rules.CLASSIC._replace(liftable=dims.restore)
    for name, personality in CELLS:
        scenario = SCENARIOS[name]
        chosen, blocks = map(np.asarray, choose(dims, POLICIES[policy], params_of(name, personality), keys))
        for e in range(episodes):
            state, memory = twin_state.reset(scenario, personality, own), set[str]()
            while not state.done:
                u = twin_rules.Draws._make(blocks[e, state.tick].tolist())
                ours = named_action(scenario, dims, int(chosen[e, state.tick]))
                theirs = twin_policy(name, policy)(state, memory, u)
                if ours != theirs or on_an_edge(scenario, state.personality, u):
                    edge = is_close_call(state, u) or on_an_edge(scenario, state.personality, u)
                    assert edge, f"{name}, {personality}, episode {e}, tick {state.tick}: {ours} != {theirs}"
                    left_out += 1
                    break
                verbs.add(ours[0])
                twin.step(state, theirs, u)
    assert left_out < 0.01 * episodes * len(CELLS)
    assert verbs == set(twin_rules.VERBS) - ({twin_rules.RESTORE} if not dims.restore else set())

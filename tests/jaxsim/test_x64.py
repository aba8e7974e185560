"""With JAX_ENABLE_X64=1 every number keeps its width, so that every episode and every result is the same.

`python tests/jaxsim/test_x64.py` prints a digest of each result, as JSON.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim
from grpo.rows import bank, credit
from jaxsim import one_episode, policies, recurrent, rollouts
from jaxsim.audit import ppo
from jaxsim.packed import pack

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ppo.Settings(lanes=8, minibatches=2, epochs=1)
ALL_ON = "hardened+believable_paths"


def digest(tree: Any) -> str:
    """Of every leaf's type, shape and bits."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return hashlib.sha256(b"".join(str((x.dtype, x.shape)).encode() + x.tobytes() for x in leaves)).hexdigest()


def network(key: jax.Array, view: str, restore: bool = False) -> recurrent.Learned:
    """Of one policy."""
    learned = recurrent.Learned(recurrent.init_weights(key, restore=restore), np.bool_(False), recurrent.SIGHTS[view])
    return jax.tree.map(lambda x: np.asarray(x)[None], learned)


def digests() -> dict[str, str]:
    """What a user gets: rollouts, the recurrent policy's play, a bank, a short fork of its states."""
    env, params = jaxsim.make("supply_chain_token_drift")
    key, many = jax.random.key(3), bank.stack([params])
    seeing, keys = recurrent.POLICIES[recurrent.SEEING], one_episode.episode_keys(key, 8)
    evidence, liftable = jaxsim.BASELINES["evidence"], jaxsim.make("supply_chain_token_drift", rules=ALL_ON)
    states = bank.collect_heuristic(env, many, *evidence, key, 2, 2)
    return {
        "rollout": digest(jaxsim.rollout(*liftable, *jaxsim.BASELINES["random"], key, 16)),
        "recurrent": digest(
            jaxsim.rollout_many(env, params, seeing, network(key, recurrent.SEEING), keys, record=True)
        ),
        "bank": digest(states),
        "fork": digest(credit.returns_to_go(env.dims, many, states, *evidence, futures=2, chunk=4)),
    }


def wide() -> list[str]:
    """Operations of the traced programs whose result is of 64 bits; integers are exact, whatever their width."""
    env, params = jaxsim.make("supply_chain_token_drift", rules=ALL_ON)
    dims, key, many = env.dims, jax.random.key(3), bank.stack([params])
    keys = one_episode.episode_keys(key, 2)
    played = [(policy, jax.tree.map(lambda x: np.asarray(x)[None], p)) for policy, p in jaxsim.BASELINES.values()]
    played += [(policy, network(key, view, restore=True)) for view, policy in recurrent.POLICIES.items()]
    plans, batch, impl = np.zeros((2, 3), np.int32), jax.random.key_data(keys)[None], "threefry2x32"
    swap = rollouts.donors(2)[None], rollouts.named_channels(("alerts",))

    given, none = pack(params._replace(reward=None)), one_episode.no_stats(params)

    def begun() -> rollouts.Lane:
        state = jax.tree.map(lambda x: x[None], jax.vmap(lambda key: one_episode.start(dims, key, params))(keys))
        own = none.verbs, none.first_containment, none.blind
        return rollouts.Lane(state, *jax.tree.map(lambda x: jnp.broadcast_to(x, (1, 2, *x.shape)), own))

    def choice(policy: Any, parameters: Any, state: Any, batch: Any) -> Any:
        memory, block = rollouts._remember(dims, policy, parameters, 2), rollouts._noise(batch, impl, np.int32(1))[0]
        return rollouts._act(dims, policy, parameters, given, memory, state, block, swap)

    def tick(lanes: Any, action: Any, batch: Any) -> Any:
        block = rollouts._noise(batch, impl, np.int32(1))[0]
        lanes, signals, *_ = rollouts._advance(dims, given, lanes, action, block)
        points = jax.tree.map(lambda x: jnp.broadcast_to(x, (1, 2)), (none.episode_return, none.channels))
        points, sums = rollouts._pay(points, jnp.zeros_like(signals), (signals,), params.reward)
        return rollouts._finish(given, lanes, points, sums)

    traced = partial(jax.make_jaxpr, return_shape=True)
    first, lanes = traced(begun)()
    chosen = [traced(partial(choice, *of))(lanes.state, batch) for of in played]
    programs = [first, *(program for program, _ in chosen)]
    programs += [jax.make_jaxpr(tick)(lanes, action, batch) for action in {action for _, (action, _) in chosen}]
    programs.append(jax.make_jaxpr(lambda k: rollouts._begin(dims, given, k, impl))(batch))
    programs.append(
        jax.make_jaxpr(lambda k: rollouts._whole(dims, policies.PLAN, plans, params, k, impl, False))(batch[0])
    )
    both = recurrent.init_weights(key, restore=True), recurrent.init_critic(key)

    def learn(many: Any, key: jax.Array) -> Any:
        batch = ppo.collect(dims, recurrent.SEEING, None, (), ppo.Learner(*both, ()), many, key, 5, SETTINGS)
        return jax.grad(partial(ppo.loss, dims, SETTINGS, ppo.PPO), has_aux=True)(both, batch)

    programs.append(jax.make_jaxpr(learn)(many, key))
    return [line.strip() for program in programs for line in re.findall(r".*:f64\[[^]]*\] = .*", str(program))]


@pytest.mark.slow
def test_nothing_changes_with_wide_numbers() -> None:
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, str(Path(__file__))], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as other:
        own = digests()
        printed, errors = other.communicate()
    assert other.returncode == 0, errors
    said = json.loads(printed)
    assert said.pop("x64") and said.pop("wide") == []
    assert said == own


if __name__ == "__main__":
    print(json.dumps({"x64": jax.config.jax_enable_x64, "wide": wide(), **digests()}))

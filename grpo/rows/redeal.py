"""What a fork must not know: the roles of what the defender has not seen, dealt anew.

A fork of a state knows who the attacker is after; the defender does not. Dealing anew keeps a lucky blind guess from
being taught.
"""

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax.scipy.special import gammaln

from jaxsim import env, telemetry
from jaxsim.types import Dims, Observation, Params, State


def unseen(dims: Dims, obs: Observation) -> Array:
    """(N,) bool: entities that exist and that no alert or forensic result in view names and no mark is on."""
    entity = np.arange(dims.entities, dtype=np.int32)
    named = jnp.concatenate([obs.alerts.asset, obs.alerts.identity, obs.forensics.entity])
    shown = jnp.concatenate([obs.alerts.number, obs.alerts.number, obs.forensics.number]) >= 0
    mentioned = jnp.any(shown[:, None] & (named[:, None] == entity[None]), axis=0)
    return obs.exists & ~mentioned & ~jnp.any(obs.marks, axis=0)


def dealt_alike(dims: Dims, state: State, params: Params, u: Array) -> Array:
    """() bool, drawn with the uniform `u` given who plays which role: whether roles were dealt within groups only."""
    s, share = params.scenario, params.rules.believable_paths
    kind = (np.arange(dims.entities, dtype=np.int32) >= dims.assets).astype(np.int32)
    there = s.exists.astype(jnp.float32)
    role = jnp.where(s.targets >= 0, s.targets, dims.entities)
    named = jnp.zeros(dims.entities, jnp.float32).at[role].set(1.0, mode="drop")

    def deals(group: Array) -> Array:
        """Logarithm of the number of ways to deal the roles that are named."""
        size, roles = (jnp.zeros(dims.entities, jnp.float32).at[group].add(x) for x in (there, named))
        return jnp.sum(gammaln(size + 1.0) - gammaln(size - roles + 1.0))

    could = jnp.all((s.targets < 0) | (s.group[state.targets] == s.group[s.targets]))
    odds = jnp.log(share) - jnp.log1p(-share) + deals(kind) - deals(s.group)
    return could & (u < jax.nn.sigmoid(odds))


def redeal(dims: Dims, state: State, params: Params, key: Array) -> State:
    """The same state with the hidden roles of unseen assets, and of unseen identities, in a random permutation.

    An exact sample given what is in view: where the rules deal roles anew each episode (`unknown_path`), all deals that
    differ only among the unseen entities of a kind, or, in an episode that is believable, of a group, were equally
    likely, and show the same. Elsewhere the state as it is. What stays: whether there is an attack, how far it is, and
    the roles of what has been seen, or contained and restored.
    """
    free = unseen(dims, env.observe(dims, state, params)) & ~state.touched & params.rules.unknown_path
    a, n = dims.assets, dims.entities
    listed, keys = np.arange(n, dtype=np.int32), jax.random.uniform(key, (n,), jnp.float32)
    alike = dealt_alike(dims, state, params, jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32))
    group = jnp.where(alike, params.scenario.group, (listed >= a).astype(np.int32))
    # Sorted by group first, then the seen behind the unseen: those are the same entities in both orders.
    slots = jnp.lexsort((listed, ~free, group))
    order = jnp.lexsort((jnp.where(free, keys, listed.astype(np.float32)), ~free, group))
    place = jnp.zeros(n, jnp.int32).at[slots].set(order.astype(jnp.int32))

    def moved(entity: Array) -> Array:
        return jnp.where(entity >= 0, place[entity], -1)

    signal, asset, identity = telemetry.unpack(dims, state.pending.code)
    return state._replace(
        targets=moved(state.targets),
        compromised=jnp.zeros(n, bool).at[place].set(state.compromised),
        pending=state.pending._replace(code=telemetry.pack(dims, signal, moved(asset), moved(identity))),
    )

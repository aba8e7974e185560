"""The action table: every (verb, entity) a defender can take, as one integer.

0 is MONITOR, then INVESTIGATE of each entity, ISOLATE_ASSET, BLOCK_EGRESS and PATCH_ASSET of each asset, and
REVOKE_IDENTITY of each identity and, where `Dims.restore` says so, RESTORE of each entity. Any other integer, and any
entity that does not exist, is an invalid action.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim.types import BLOCK_EGRESS, INVESTIGATE, ISOLATE_ASSET, PATCH_ASSET, RESTORE, REVOKE_IDENTITY, Dims

INVALID = -1


@lru_cache
def table(dims: Dims) -> tuple[np.ndarray, np.ndarray]:
    """Verb and entity (-1 for MONITOR) of each action, two (dims.actions,) int32 arrays."""
    assets, identities = range(dims.assets), range(dims.assets, dims.entities)
    rows = [(0, -1)]
    rows += [(INVESTIGATE, e) for e in (*assets, *identities)]
    rows += [(verb, e) for verb in (ISOLATE_ASSET, BLOCK_EGRESS, PATCH_ASSET) for e in assets]
    rows += [(REVOKE_IDENTITY, e) for e in identities]
    rows += [(RESTORE, e) for e in (*assets, *identities) if dims.restore]
    verbs, entities = np.asarray(rows, np.int32).T
    return verbs, entities


def encode(dims: Dims, verb: Array, entity: Array) -> Array:
    """Action of a verb and an entity, int32; the entity must be of the verb's kind (it is ignored for MONITOR)."""
    a, n = dims.assets, dims.entities
    restore = 1 + n + 3 * a + dims.identities
    # Identities follow the assets, so REVOKE_IDENTITY continues where PATCH_ASSET ends.
    first = np.asarray([0, 1, 1 + n, 1 + n + a, 1 + n + 2 * a, 1 + n + 2 * a, restore], np.int32)
    return jnp.where(verb == 0, 0, jnp.asarray(first)[verb] + entity).astype(jnp.int32)


def decode(dims: Dims, action: Array, exists: Array) -> tuple[Array, Array, Array]:
    """(verb, entity, valid) of an action; an invalid one comes back as MONITOR of entity 0 with valid False.

    `exists` is (N,) bool. Entity is 0 for MONITOR, so that it can index.
    """
    verbs, entities = table(dims)
    known = (action >= 0) & (action < dims.actions)
    safe = jnp.where(known, action, 0)
    verb, entity = jnp.asarray(verbs)[safe], jnp.maximum(jnp.asarray(entities)[safe], 0)
    valid = known & ((verb == 0) | exists[entity])
    return jnp.where(valid, verb, 0), jnp.where(valid, entity, 0), valid


def legal_mask(dims: Dims, exists: Array) -> Array:
    """(dims.actions,) bool: actions that are not invalid. Repeating a control is legal."""
    _, entities = table(dims)
    return jnp.where(entities < 0, True, exists[np.maximum(entities, 0)])

"""A small recurrent policy network that works on networks of any size.

One set of weights serves every entity: each has its own features and its own GRU memory, and all share a pooled
summary, so what is learned on one enterprise can be played on another, and relabelling the entities relabels the
actions (but for the place in the list, a feature that a positional plan would need). Views of the audit, each a
`Policy` with a `Sight`:

    seeing      the observation
    alerts      the observation without forensics and what they confirmed; it never investigates
    masked      the observation without alerts and forensics: an open-loop policy, whatever it learns
    privileged  the observation and the truth: an upper bound, no defender

and one that the audit does not use, a teacher for what sees single observations only, such as a prompt:

    memoryless  the observation, with the memory empty at every tick

GRU: Cho et al. 2014, arXiv:1406.1078. Pooling over a set: Zaheer et al. 2017, arXiv:1703.06114.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxsim import stages
from jaxsim.attacker import in_force, ready
from jaxsim.policies import Policy
from jaxsim.types import CONFIRMED, CUT_OFF, RUNNING, Dims, Observation, State

SEEING, ALERTS, MASKED, PRIVILEGED = "seeing", "alerts", "masked", "privileged"
VIEWS = (SEEING, ALERTS, MASKED, PRIVILEGED)
MEMORYLESS = "memoryless"
SIGNALS = 5
PERSONALITIES = 3
FADE = 4.0  # ticks in which how new the newest alert or result is, 1 now, fades to 1/e
ENTITY_FEATURES = 26
OVERALL_FEATURES = 18
SEEN_OF_ENTITY, SEEN_OVERALL = ENTITY_FEATURES - 4, OVERALL_FEATURES - 7  # the others are the truth
HEADS = 4  # logits of an entity: INVESTIGATE, cut off (isolate or revoke), BLOCK_EGRESS, PATCH_ASSET; one more: RESTORE
ILLEGAL = np.float32(-1e9)
_OF_FORENSICS = np.arange(14) >= 8  # columns of `evidence_features`; the others are of alerts


class Weights(NamedTuple):
    """H = width. Matrices are (in, out); every dtype is float32."""

    embed: Array  # (ENTITY_FEATURES, H)
    embed_overall: Array  # (OVERALL_FEATURES, H)
    embed_bias: Array  # (H,)
    gru_own: Array  # (H, 3H), from own embedding to update, reset, candidate
    gru_pooled: Array  # (2H, 3H), from the mean and the maximum of all embeddings
    gru_memory: Array  # (H, 3H)
    gru_bias: Array  # (3H,)
    act_own: Array  # (H, heads), from own embedding; HEADS, or one more where there is RESTORE
    act_memory: Array  # (H, heads)
    act_pooled: Array  # (2H, heads), from the mean and the maximum of all memories
    act_bias: Array  # (heads,)
    wait_pooled: Array  # (2H,), logit of MONITOR
    wait_overall: Array  # (OVERALL_FEATURES,)
    wait_bias: Array  # ()


class Critic(NamedTuple):
    """The value function that training needs and play does not. It has no memory: it is given the truth."""

    embed: Array  # (ENTITY_FEATURES, H)
    embed_overall: Array  # (OVERALL_FEATURES, H)
    embed_bias: Array  # (H,)
    mix: Array  # (2H, H), from the mean and the maximum of all embeddings
    mix_overall: Array  # (OVERALL_FEATURES, H)
    mix_bias: Array  # (H,)
    out: Array  # (H,)
    out_bias: Array  # ()


class Sight(NamedTuple):
    """What a view leaves of an observation, and allows: data, so that one program plays all views without the truth."""

    alerts: Array  # () bool, it sees alerts
    forensics: Array  # () bool, it sees forensic results, and what they confirmed
    looks: Array  # () bool, INVESTIGATE is among its actions
    remembers: Array  # () bool, what it made of earlier ticks counts


_ALL = Sight(*[np.bool_(True)] * len(Sight._fields))
_NO = np.bool_(False)
SIGHTS = {
    SEEING: _ALL,
    ALERTS: _ALL._replace(forensics=_NO, looks=_NO),
    MASKED: _ALL._replace(alerts=_NO, forensics=_NO),
    PRIVILEGED: _ALL,
    MEMORYLESS: _ALL._replace(remembers=_NO),
}


class Learned(NamedTuple):
    """The parameters of a learned policy."""

    weights: Weights
    greedy: Array  # () bool, the likeliest action instead of a sampled one
    sight: Sight


class Features(NamedTuple):
    """What the network is given at one tick."""

    entity: Array  # (N, ENTITY_FEATURES) float32
    overall: Array  # (OVERALL_FEATURES,) float32
    exists: Array  # (N,) bool
    sight: Sight


def _draw(key: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Normal weights of variance 1 / inputs, a hundredth of that in the layers that give logits; biases 0."""

    def draw(name: str, k: Array) -> Array:
        shape = shapes[name]
        if name.endswith("bias"):
            return jnp.zeros(shape, jnp.float32)
        gain = 0.1 if name.startswith(("act", "wait")) else 1.0
        return jax.random.normal(k, shape, jnp.float32) * np.float32(gain / np.sqrt(shape[0]))

    return {name: draw(name, k) for name, k in zip(shapes, jax.random.split(key, len(shapes)), strict=True)}


def init_weights(key: Array, width: int = 16, restore: bool = False) -> Weights:
    """Small random weights, MONITOR ahead, so that play begins quietly; `restore` is that of the `Dims` to play in."""
    h, f, g, heads = width, ENTITY_FEATURES, OVERALL_FEATURES, HEADS + restore
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (f, h), "embed_overall": (g, h), "embed_bias": (h,),
        "gru_own": (h, 3 * h), "gru_pooled": (2 * h, 3 * h), "gru_memory": (h, 3 * h), "gru_bias": (3 * h,),
        "act_own": (h, heads), "act_memory": (h, heads), "act_pooled": (2 * h, heads), "act_bias": (heads,),
        "wait_pooled": (2 * h,), "wait_overall": (g,), "wait_bias": (),
    }  # fmt: skip
    return Weights(**_draw(key, shapes))._replace(wait_bias=jnp.float32(3.0))


def init_critic(key: Array, width: int = 32) -> Critic:
    """Random weights of the value function."""
    h, f, g = width, ENTITY_FEATURES, OVERALL_FEATURES
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (f, h), "embed_overall": (g, h), "embed_bias": (h,),
        "mix": (2 * h, h), "mix_overall": (g, h), "mix_bias": (h,), "out": (h,), "out_bias": (),
    }  # fmt: skip
    return Critic(**_draw(key, shapes))


# --- features -------------------------------------------------------------------------------------------------------


def evidence_features(dims: Dims, obs: Observation) -> Array:
    """(N, 14): what the alerts and forensic results in view say of each entity.

    One at a time, because that takes half as long as a table of all alerts by all entities.
    """
    alerts, forensics, entity = obs.alerts, obs.forensics, np.arange(dims.entities, dtype=np.int32)
    none, long_ago = jnp.zeros(dims.entities, jnp.float32), jnp.full(dims.entities, 10_000, jnp.int32)
    many, now, newest, severest = none, none, long_ago, [none] * SIGNALS
    for k in range(dims.alerts):
        names = (alerts.number[k] >= 0) & ((alerts.asset[k] == entity) | (alerts.identity[k] == entity))
        severity = jnp.where(names, alerts.severity[k], 0.0)
        severest = [jnp.maximum(x, jnp.where(alerts.signal[k] == s, severity, 0.0)) for s, x in enumerate(severest)]
        many += names.astype(jnp.float32)
        newest = jnp.where(names, jnp.minimum(newest, obs.tick - alerts.tick[k]), newest)
        now = jnp.where(alerts.tick[k] == obs.tick, jnp.maximum(now, severity), now)
    # Of "compromised" verdicts, then of "clean" ones.
    results, surest, latest = [none] * 2, [none] * 2, long_ago
    for k in range(dims.forensics):
        names = (forensics.number[k] >= 0) & (forensics.entity[k] == entity)
        its = [names & forensics.compromised[k], names & ~forensics.compromised[k]]
        results = [x + i.astype(jnp.float32) for x, i in zip(results, its, strict=True)]
        surest = [jnp.where(i, jnp.maximum(x, forensics.confidence[k]), x) for x, i in zip(surest, its, strict=True)]
        latest = jnp.where(names, jnp.minimum(latest, obs.tick - forensics.tick[k]), latest)

    def fresh(age: Array) -> Array:
        return jnp.exp(age.astype(jnp.float32) / -FADE)

    of_verdicts = [x for both in zip(surest, (r / 2.0 for r in results), strict=True) for x in both]
    confirmed = obs.marks[CONFIRMED].astype(jnp.float32)
    return jnp.stack([*severest, many / 4.0, fresh(newest), now, *of_verdicts, fresh(latest), confirmed], axis=1)


def hidden_features(dims: Dims, state: State) -> tuple[Array, Array]:
    """(N, 4) and (7,): the truth that only a privileged policy gets, and the critic."""
    entity, targets = np.arange(dims.entities, dtype=np.int32), state.targets[:, : dims.stages]
    startable = jnp.where(state.attack, state.idle & ~in_force(state), jnp.uint32(0))
    possible, at_once = (stages.unpacked(x, dims.stages) for x in (startable, startable & ready(state)))
    k = jnp.maximum(state.stage, 0)

    def aimed(which: Array) -> Array:
        return jnp.any(which[None, :, None] & (targets[:, :, None] == entity[None, None]), axis=(0, 1))

    now = (state.stage >= 0) & jnp.any(targets[:, k][:, None] == entity[None], axis=0)
    per_entity = jnp.stack([state.compromised, now, aimed(at_once), aimed(possible)], axis=1)
    left = jnp.where(state.stage >= 0, (state.stage_end - state.tick).astype(jnp.float32) / 10.0, 0.0)
    wait = jnp.maximum(state.next_start - state.tick, 0).astype(jnp.float32) / 10.0
    gone = state.exfil | (state.end != RUNNING)
    facts = [state.attack, state.stage >= 0, gone, state.earned, state.succeeded > 0]
    overall = jnp.stack([*(x.astype(jnp.float32) for x in facts), left, jnp.where(state.attack, wait, 0.0)])
    return per_entity.astype(jnp.float32), overall


def features(dims: Dims, sight: Sight, obs: Observation, state: State | None = None) -> Features:
    """What is made of an observation, and of the state for who is privileged; what is not seen is 0."""
    n = dims.entities
    asset = np.arange(n, dtype=np.int32) < dims.assets
    index = np.where(asset, np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32) - dims.assets)
    of_a_kind = [jnp.sum(x, dtype=jnp.int32) for x in (obs.exists[: dims.assets], obs.exists[dims.assets :])]
    last = jnp.maximum(jnp.where(asset, of_a_kind[0], of_a_kind[1]) - 1, 1)
    place = index.astype(np.float32) / last.astype(jnp.float32)
    own = [obs.exists, asset, obs.value, place, index == 0, *obs.marks[:CONFIRMED]]
    evidence = evidence_features(dims, obs)
    evidence = jnp.where(jnp.where(_OF_FORENSICS, sight.forensics, sight.alerts), evidence, 0.0)
    unseen = jnp.zeros((n, 4), jnp.float32), jnp.zeros(7, jnp.float32)
    hidden, truth = unseen if state is None else hidden_features(dims, state)

    horizon, tick = obs.horizon.astype(jnp.float32), obs.tick.astype(jnp.float32)
    cut_off = jnp.sum(obs.value * obs.marks[CUT_OFF].astype(jnp.float32))
    shown = jnp.where(sight.alerts, jnp.sum(obs.alerts.number >= 0, dtype=jnp.float32) / 12.0, 0.0)
    size = [jnp.log2(1.0 + x.astype(jnp.float32)) / 10.0 for x in of_a_kind]
    clock = [tick / horizon, tick / 100.0, (horizon - tick) / 100.0, jnp.exp(tick / -5.0), cut_off, shown, *size]
    who = (obs.personality == np.arange(PERSONALITIES, dtype=np.int32)).astype(jnp.float32)
    own_columns = jnp.stack([jnp.asarray(x).astype(jnp.float32) for x in own], axis=1)
    return Features(
        entity=jnp.concatenate([own_columns, evidence, hidden], axis=1),
        overall=jnp.concatenate([jnp.stack(clock), who, truth]),
        exists=obs.exists,
        sight=jax.tree.map(jnp.asarray, sight),
    )


# --- the network ----------------------------------------------------------------------------------------------------


def vector_size(dims: Dims) -> int:
    """F, the length of `vector`."""
    return dims.entities * SEEN_OF_ENTITY + SEEN_OVERALL


def vector(dims: Dims, obs: Observation) -> Array:
    """(F,) float32: the features of one episode's observation that are not the truth, for other people's trainers."""
    entity, overall, *_ = features(dims, SIGHTS[SEEING], obs)
    return jnp.concatenate([entity[:, :SEEN_OF_ENTITY].reshape(-1), overall[:SEEN_OVERALL]])


def pool(x: Array, exists: Array) -> Array:
    """(N, H) -> (2H,): mean and maximum over the entities that exist."""
    there = exists[:, None]
    mean = jnp.sum(jnp.where(there, x, 0.0), axis=0) / jnp.maximum(jnp.sum(exists, dtype=jnp.float32), 1.0)
    return jnp.concatenate([mean, jnp.max(jnp.where(there, x, -2.0), axis=0)])


def forward(dims: Dims, w: Weights, memory: Array, f: Features) -> tuple[Array, Array]:
    """One tick: ((dims.actions,) logits, (N, H) memory) from the (N, H) memory before it."""
    memory = jnp.where(f.sight.remembers, memory, 0.0)
    embedded = jnp.tanh(f.entity @ w.embed + (f.overall @ w.embed_overall + w.embed_bias)[None])
    given = embedded @ w.gru_own + (pool(embedded, f.exists) @ w.gru_pooled + w.gru_bias)[None]
    u, r, c = jnp.split(given, 3, axis=1)
    # Three products instead of one that is split: faster on a CPU.
    of_update, of_reset, of_candidate = jnp.split(w.gru_memory, 3, axis=1)
    update, reset = jax.nn.sigmoid(u + memory @ of_update), jax.nn.sigmoid(r + memory @ of_reset)
    memory = update * memory + (1.0 - update) * jnp.tanh(c + reset * (memory @ of_candidate))

    pooled = pool(memory, f.exists)
    heads = embedded @ w.act_own + memory @ w.act_memory + (pooled @ w.act_pooled + w.act_bias)[None]
    heads = jnp.where(f.exists[:, None], heads, ILLEGAL)
    investigate, cut_off, egress, patch, *restore = heads.T
    investigate = jnp.where(f.sight.looks, investigate, ILLEGAL)
    a = dims.assets
    wait = jnp.reshape(pooled @ w.wait_pooled + f.overall @ w.wait_overall + w.wait_bias, (1,))
    return jnp.concatenate([wait, investigate, cut_off[:a], egress[:a], patch[:a], cut_off[a:], *restore]), memory


def criticise(c: Critic, f: Features) -> Array:
    """() value, in units of the trainer's, of privileged features."""
    embedded = jnp.tanh(f.entity @ c.embed + (f.overall @ c.embed_overall + c.embed_bias)[None])
    return jnp.tanh(pool(embedded, f.exists) @ c.mix + f.overall @ c.mix_overall + c.mix_bias) @ c.out + c.out_bias


def no_history(dims: Dims, w: Weights) -> Array:
    """(N, H) memory at reset."""
    return jnp.zeros((dims.entities, w.embed.shape[1]), jnp.float32)


def sample(logits: Array, u: Array) -> Array:
    """Action, int32, drawn with the probabilities of the logits from one uniform."""
    below = jnp.cumsum(jax.nn.softmax(logits))
    return jnp.minimum(jnp.sum(below <= u * below[-1], dtype=jnp.int32), len(logits) - 1)


# --- policies -------------------------------------------------------------------------------------------------------


def _init(dims: Dims, p: Learned) -> Array:
    return no_history(dims, p.weights)


def _choose(dims: Dims, p: Learned, memory: Array, seen: Features, noise: Array) -> tuple[Array, Array]:
    logits, memory = forward(dims, p.weights, memory, seen)
    best = jax.lax.argmax(logits, 0, jnp.int32)
    return jnp.where(p.greedy, best, sample(logits, noise[0])), memory


def _act(dims: Dims, p: Learned, memory: Array, obs: Observation, noise: Array) -> tuple[Array, Array]:
    return _choose(dims, p, memory, features(dims, p.sight, obs), noise)


def _act_on_truth(
    dims: Dims, p: Learned, memory: Array, seen: tuple[Observation, State], noise: Array
) -> tuple[Array, Array]:
    return _choose(dims, p, memory, features(dims, p.sight, *seen), noise)


_NETWORK = Policy(_init, _act)
POLICIES = dict.fromkeys(SIGHTS, _NETWORK) | {PRIVILEGED: Policy(_init, _act_on_truth, privileged=True)}


def chances(dims: Dims, w: Weights, obs: Observation) -> Array:
    """(dims.actions,) probability of every action, of a memoryless network that sees an observation; 0 if illegal."""
    logits, _ = forward(dims, w, no_history(dims, w), features(dims, SIGHTS[MEMORYLESS], obs))
    return jax.nn.softmax(logits)

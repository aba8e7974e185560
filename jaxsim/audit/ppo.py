"""Proximal policy optimisation of the recurrent policy, over whole episodes of many scenarios at once.

PPO: Schulman et al. 2017, arXiv:1707.06347; advantages: Schulman et al. 2016, arXiv:1506.02438 (GAE). The network is
trained through the whole episode (back-propagation through time), undiscounted, since an episode has a horizon. It may
begin as a copy of a teacher (behaviour cloning), from which PPO then departs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from jaxsim import env, recurrent, reward
from jaxsim.noise import Noise
from jaxsim.policies import Policy
from jaxsim.recurrent import Features, Weights, forward
from jaxsim.rollouts import start, tick_noise
from jaxsim.types import RUNNING, Dims, Params


class Settings(NamedTuple):
    """How to train. An update plays `lanes` whole episodes, each of a scenario drawn at random."""

    updates: int = 200
    clone_updates: int = 40  # of behaviour cloning, before PPO; 0 without a teacher
    value_updates: int = 10  # of PPO with the policy held still, so that cloning is not undone by a raw value function
    lanes: int = 128
    epochs: int = 3
    minibatches: int = 4
    width: int = 16
    learning_rate: float = 1e-3  # falls linearly to 0
    clone_rate: float = 3e-3
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.003
    value_weight: float = 0.5
    max_gradient: float = 0.5
    value_scale: float = 5.0  # points per unit of the value head


class Batch(NamedTuple):
    """What an update learns from; leading axes T ticks, then L lanes."""

    features: Features
    action: Array  # (T, L) int32
    log_p: Array  # (T, L) float32
    value: Array  # (T, L) float32, points
    reward: Array  # (T, L) float32, points
    live: Array  # (T, L) float32, 1 while the episode runs
    advantage: Array  # (T, L) float32
    target: Array  # (T, L) float32, points


class Report(NamedTuple):
    """One update, for the log."""

    episode_return: Array  # () float32, mean over the lanes, points
    entropy: Array  # () float32, nats
    loss: Array  # () float32


def collect(
    dims: Dims, view: str, teacher: Policy | None, taught: Any, weights: Weights, many: Params, key: Array, ticks: int,
    settings: Settings,
) -> Batch:  # fmt: skip
    """Play whole episodes with the network, or with the teacher; `many` has a leading axis of scenarios."""
    which, luck = jax.random.split(key)
    scenarios = many.scenario.horizon.shape[0]
    index = jax.random.randint(which, (settings.lanes,), 0, scenarios)
    params = jax.tree.map(lambda x: x[index], many)
    keys = jax.random.split(luck, settings.lanes)
    policy = recurrent.POLICIES[view]

    def begin(k: Array, p: Params) -> Any:
        own = teacher.init(dims, taught) if teacher else ()
        return start(dims, k, p), recurrent.no_history(dims, weights), own

    def tick(k: Array, p: Params, carry: Any) -> Any:
        state, memory, own = carry
        block = tick_noise(k, state.tick + 1)
        obs = env.observe(dims, state, p)
        seen = recurrent.features(dims, view, (obs, state) if policy.privileged else obs)
        logits, value, memory = forward(dims, weights, memory, seen)
        if teacher:
            given = (obs, state) if teacher.privileged else obs
            action, own = teacher.act(dims, taught, own, given, block[Noise.POLICY_VERB :])
        else:
            action = recurrent.sample(logits, block[Noise.POLICY_VERB])
        log_p = jax.nn.log_softmax(logits)[action]
        live = (state.end == RUNNING).astype(jnp.float32)
        state, signals = env.transition(dims, state, action, block, p)
        points = reward.total(reward.channels(signals, p.reward), p.reward)
        return (state, memory, own), (seen, action, log_p, value * settings.value_scale, points, live)

    def step(carry: Any, _: None) -> Any:
        return jax.vmap(tick)(keys, params, carry)

    carry = jax.vmap(begin)(keys, params)
    _, (seen, action, log_p, value, points, live) = jax.lax.scan(step, carry, length=ticks)

    def back(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> Any:
        advantage, next_value = carry
        points, value, live = row
        delta = points + next_value - value
        advantage = live * (delta + settings.gae_lambda * advantage)
        return (advantage, live * value), advantage

    zero = jnp.zeros(settings.lanes, jnp.float32)
    _, advantage = jax.lax.scan(back, (zero, zero), (points, value, live), reverse=True)
    return Batch(seen, action, log_p, value, points, live, advantage, advantage + value)


def replay_network(dims: Dims, weights: Weights, seen: Features) -> tuple[Array, Array]:
    """Log-probabilities (T, L, actions) and values (T, L) of the network on features (T, L, ...)."""

    def step(memory: Array, f: Features) -> Any:
        logits, value, memory = jax.vmap(partial(forward, dims, weights))(memory, f)
        return memory, (jax.nn.log_softmax(logits), value)

    lanes = seen.overall.shape[1]
    memory = jnp.zeros((lanes, *recurrent.no_history(dims, weights).shape), jnp.float32)
    _, (log_p, value) = jax.lax.scan(step, memory, seen)
    return log_p, value


def loss(
    dims: Dims, settings: Settings, cloning: bool, policy_weight: Array, weights: Weights, batch: Batch
) -> tuple[Array, Array]:
    """(loss, mean entropy) of PPO's clipped objective, or of cloning the actions of the batch."""
    log_p_all, value = replay_network(dims, weights, batch.features)
    log_p = jnp.take_along_axis(log_p_all, batch.action[..., None], axis=-1)[..., 0]
    total = jnp.sum(batch.live)

    def mean(x: Array) -> Array:
        return jnp.sum(x * batch.live) / total

    entropy = mean(-jnp.sum(jnp.exp(log_p_all) * jnp.maximum(log_p_all, -50.0), axis=-1))
    value_loss = mean(jnp.square(value - batch.target / settings.value_scale))
    if cloning:
        return mean(-log_p) + settings.value_weight * value_loss, entropy
    centred = batch.advantage - mean(batch.advantage)
    advantage = centred / (jnp.sqrt(mean(jnp.square(centred))) + 1e-6)
    ratio = jnp.exp(log_p - batch.log_p)
    bounded = jnp.clip(ratio, 1.0 - settings.clip, 1.0 + settings.clip)
    gain = mean(jnp.minimum(ratio * advantage, bounded * advantage))
    return settings.value_weight * value_loss - policy_weight * (gain + settings.entropy * entropy), entropy


@partial(jax.jit, static_argnames=("dims", "view", "teacher", "ticks", "settings", "optimiser"))
def update(
    dims: Dims,
    view: str,
    teacher: Policy | None,
    taught: Any,
    ticks: int,
    settings: Settings,
    optimiser: optax.GradientTransformation,
    weights: Weights,
    memory: Any,
    many: Params,
    key: Array,
    policy_weight: Array,
) -> tuple[Weights, Any, Report]:
    """Play, then learn from it in several epochs. `memory` is the optimiser's."""
    play_key, shuffle_key = jax.random.split(key)
    batch = collect(dims, view, teacher, taught, weights, many, play_key, ticks, settings)
    size = settings.lanes // settings.minibatches
    order = jax.vmap(lambda k: jax.random.permutation(k, settings.lanes))(
        jax.random.split(shuffle_key, settings.epochs)
    ).reshape(-1, size)

    def learn(carry: Any, rows: Array) -> Any:
        weights, memory = carry
        part = jax.tree.map(lambda x: x[:, rows], batch)
        slope = jax.value_and_grad(partial(loss, dims, settings, teacher is not None, policy_weight), has_aux=True)
        (value, entropy), gradient = slope(weights, part)
        change, memory = optimiser.update(gradient, memory, weights)
        return (optax.apply_updates(weights, change), memory), (value, entropy)

    (weights, memory), (losses, entropies) = jax.lax.scan(learn, (weights, memory), order)
    earned = jnp.mean(jnp.sum(batch.reward, axis=0))
    return weights, memory, Report(earned, jnp.mean(entropies), jnp.mean(losses))


def train(
    dims: Dims,
    view: str,
    many: Params,
    settings: Settings,
    seed: int,
    teacher: tuple[Policy, Any] | None = None,
    advance: Callable[[str, Report], None] = lambda phase, report: None,
) -> Weights:
    """Train on the scenarios of `many`, Params with a leading axis. `advance(phase, report)` follows each update.

    Raises ValueError when `lanes` is no multiple of `minibatches`.
    """
    if settings.lanes % settings.minibatches:
        raise ValueError(f"lanes = {settings.lanes} is no multiple of minibatches = {settings.minibatches}")
    ticks = int(np.max(many.scenario.horizon))
    key = jax.random.fold_in(jax.random.key(seed), 0x7070)
    weights = recurrent.init_weights(jax.random.fold_in(key, 2**31 - 1), settings.width)
    phases: list[tuple[str, Policy | None, Any, int, float]] = [
        ("PPO", None, (), settings.updates, settings.learning_rate)
    ]
    if teacher:
        phases.insert(0, ("cloning", teacher[0], teacher[1], settings.clone_updates, settings.clone_rate))
    done = 0
    for phase, policy, taught, updates, rate in phases:
        optimiser = _optimiser(settings, rate, updates)
        memory = optimiser.init(weights)
        for i in range(updates):
            still = phase == "PPO" and teacher is not None and i < settings.value_updates
            weights, memory, report = update(
                dims, view, policy, taught, ticks, settings, optimiser, weights, memory, many,
                jax.random.fold_in(key, done), jnp.float32(not still),
            )  # fmt: skip
            done += 1
            advance(phase, report)
    return weights


def _optimiser(settings: Settings, rate: float, updates: int) -> optax.GradientTransformation:
    steps = updates * settings.epochs * settings.minibatches
    schedule = optax.linear_schedule(rate, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(settings.max_gradient), optax.adam(schedule))

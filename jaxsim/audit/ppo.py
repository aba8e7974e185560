"""Proximal policy optimisation of the recurrent policy, over whole episodes of many scenarios at once.

PPO: Schulman et al. 2017, arXiv:1707.06347; advantages: Schulman et al. 2016, arXiv:1506.02438 (GAE). The value
function is given the truth, which only the policy must not see (Pinto et al. 2017, arXiv:1710.06542). The network is
trained through the whole episode (back-propagation through time), undiscounted, since an episode has a horizon. It may
begin as a copy of a teacher, from which PPO then departs: the teacher says what it would do, in episodes that it plays
and in episodes that the pupil plays, which lead elsewhere (DAgger, Ross et al. 2011, arXiv:1011.0686). It learns from
normalised features (`moments`).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from jaxsim import env, noise, recurrent, reward
from jaxsim.audit import moments
from jaxsim.audit.moments import Moments
from jaxsim.noise import Noise
from jaxsim.one_episode import start, tick_noise
from jaxsim.policies import Policy
from jaxsim.recurrent import Critic, Features, Weights, forward
from jaxsim.types import RUNNING, Dims, Params


class Settings(NamedTuple):
    """How to train. An update plays `lanes` whole episodes, each of a scenario drawn at random."""

    updates: int = 200
    clone_updates: int = 80  # before PPO; 0 without a teacher
    critic_updates: int = 40  # before PPO, where the policy is not new: only the critic learns
    lanes: int = 128
    epochs: int = 3
    minibatches: int = 4
    width: int = 16
    critic_width: int = 32
    learning_rate: float = 1e-3  # falls linearly to 0
    clone_rate: float = 3e-3
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.001
    max_gradient: float = 0.5
    value_scale: float = 5.0  # points per unit of the value head


CLONING, CRITIC, PPO = "cloning", "critic", "PPO"  # what is learned in a phase of training


class Batch(NamedTuple):
    """What an update learns from; leading axes T ticks, then L lanes."""

    features: Features  # that the policy sees
    truth: Features  # that the critic sees
    action: Array  # (T, L) int32
    log_p: Array  # (T, L) float32
    reward: Array  # (T, L) float32, points
    live: Array  # (T, L) float32, 1 while the episode runs
    advantage: Array  # (T, L) float32
    target: Array  # (T, L) float32, points


class Learner(NamedTuple):
    """All that training changes."""

    weights: Weights
    critic: Critic
    memory: Any  # the optimiser's, of steps that (weights, critic) take as if features were normalised


class Report(NamedTuple):
    """One update, for the log; and what the features are like."""

    episode_return: Array  # () float32, mean over the lanes, points
    entropy: Array  # () float32, nats
    loss: Array  # () float32
    normal: tuple[Moments, Moments]  # of the features of policy and critic in what was played


def collect(
    dims: Dims, view: str, teacher: Policy | None, taught: Any, learner: Learner, many: Params, key: Array, ticks: int,
    settings: Settings,
) -> Batch:  # fmt: skip
    """Play whole episodes with the network; `many` and `taught` have a leading axis of scenarios.

    A teacher plays every other lane, and the actions of the batch are what it does, or would do, in all of them.
    """
    which, luck = jax.random.split(key)
    scenarios = many.scenario.horizon.shape[0]
    index = jax.random.randint(which, (settings.lanes,), 0, scenarios, jnp.int32)
    params, taught = jax.tree.map(lambda x: x[index], (many, taught))
    keys = jax.random.split(luck, settings.lanes)
    weights, privileged = learner.weights, recurrent.POLICIES[view].privileged

    def begin(k: Array, p: Params, t: Any) -> Any:
        own = teacher.init(dims, t) if teacher else ()
        return start(dims, k, p), recurrent.no_history(dims, weights), own

    def tick(k: Array, p: Params, t: Any, led: Array, carry: Any) -> Any:
        state, memory, own = carry
        block = tick_noise(k, state.tick + 1)
        obs = env.observe(dims, state, p)
        seen = recurrent.features(dims, recurrent.SIGHTS[view], obs, state if privileged else None)
        truth = recurrent.features(dims, recurrent.SIGHTS[recurrent.PRIVILEGED], obs, state)
        logits, memory = forward(dims, weights, memory, seen)
        value = recurrent.criticise(learner.critic, truth) * settings.value_scale
        action = played = recurrent.sample(logits, block[Noise.POLICY_VERB])
        if teacher:
            given = (obs, state) if teacher.privileged else obs
            action, own = teacher.act(dims, t, own, given, block[Noise.POLICY_VERB :])
            played = jnp.where(led, action, played)
        log_p = jax.nn.log_softmax(logits)[action]
        live = (state.end == RUNNING).astype(jnp.float32)
        state, signals = env.transition(dims, state, played, block, p)
        points = reward.total(reward.channels(signals, p.reward), p.reward)
        return (state, memory, own), (seen, truth, action, log_p, value, points, live)

    def step(carry: Any, _: None) -> Any:
        return jax.vmap(tick)(keys, params, taught, np.arange(settings.lanes) % 2 == 0, carry)

    carry = jax.vmap(begin)(keys, params, taught)
    _, (seen, truth, action, log_p, value, points, live) = jax.lax.scan(step, carry, length=ticks)

    def back(carry: tuple[Array, Array], row: tuple[Array, Array, Array]) -> Any:
        advantage, next_value = carry
        points, value, live = row
        delta = points + next_value - value
        advantage = live * (delta + settings.gae_lambda * advantage)
        return (advantage, live * value), advantage

    zero = jnp.zeros(settings.lanes, jnp.float32)
    _, advantage = jax.lax.scan(back, (zero, zero), (points, value, live), reverse=True)
    return Batch(seen, truth, action, log_p, points, live, advantage, advantage + value)


def replay_network(dims: Dims, weights: Weights, seen: Features) -> Array:
    """Log-probabilities (T, L, actions) of the network on features (T, L, ...)."""

    @jax.checkpoint  # on the way back a tick is worked out again: on a CPU, to keep all of it takes longer
    def step(memory: Array, f: Features) -> Any:
        logits, memory = jax.vmap(partial(forward, dims, weights))(memory, f)
        return memory, jax.nn.log_softmax(logits)

    lanes = seen.overall.shape[1]
    memory = jnp.zeros((lanes, *recurrent.no_history(dims, weights).shape), jnp.float32)
    log_p: Array = jax.lax.scan(step, memory, seen)[1]
    return log_p


def loss(dims: Dims, settings: Settings, phase: str, both: tuple[Weights, Critic], batch: Batch) -> tuple[Array, Array]:
    """(loss, mean entropy) of the critic, and of PPO's clipped objective or of cloning the actions of the batch."""
    weights, critic = both
    log_p_all = replay_network(dims, weights, batch.features)
    log_p = jnp.take_along_axis(log_p_all, batch.action[..., None], axis=-1)[..., 0]
    total = jnp.sum(batch.live)

    def mean(x: Array) -> Array:
        return jnp.sum(x * batch.live) / total

    value = jax.vmap(jax.vmap(partial(recurrent.criticise, critic)))(batch.truth)
    error = mean(jnp.square(value - batch.target / settings.value_scale))
    entropy = mean(-jnp.sum(jnp.exp(log_p_all) * jnp.maximum(log_p_all, -50.0), axis=-1))
    if phase == CRITIC:
        return error, entropy
    if phase == CLONING:
        return mean(-log_p) + error, entropy
    centred = batch.advantage - mean(batch.advantage)
    advantage = centred / (jnp.sqrt(mean(jnp.square(centred))) + 1e-6)
    ratio = jnp.exp(log_p - batch.log_p)
    bounded = jnp.clip(ratio, 1.0 - settings.clip, 1.0 + settings.clip)
    gain = mean(jnp.minimum(ratio * advantage, bounded * advantage))
    return error - gain - settings.entropy * entropy, entropy


@partial(jax.jit, static_argnames=("dims", "view", "phase", "teacher", "ticks", "settings", "optimiser"))
def update(
    dims: Dims,
    view: str,
    phase: str,
    teacher: Policy | None,
    taught: Any,
    ticks: int,
    settings: Settings,
    optimiser: optax.GradientTransformation,
    normal: tuple[Moments, Moments],
    learner: Learner,
    many: Params,
    key: Array,
) -> tuple[Learner, Report]:
    """Play, then learn from it in several epochs. `normal` has the moments of the features of policy and critic."""
    play_key, shuffle_key = jax.random.split(key)
    batch = collect(dims, view, teacher, taught, learner, many, play_key, ticks, settings)
    size = settings.lanes // settings.minibatches
    order = jax.vmap(lambda k: jax.random.permutation(k, settings.lanes))(
        jax.random.split(shuffle_key, settings.epochs)
    ).reshape(-1, size)

    def learn(learner: Learner, rows: Array) -> Any:
        part = jax.tree.map(lambda x: x[:, rows], batch)
        both = learner.weights, learner.critic

        def after(step: tuple[Weights, Critic]) -> tuple[Weights, Critic]:
            return jax.tree.map(jnp.add, both, tuple(map(moments.as_they_are, step, normal)))

        nowhere = jax.tree.map(jnp.zeros_like, both)
        slope = jax.value_and_grad(lambda step: loss(dims, settings, phase, after(step), part), has_aux=True)
        (value, entropy), gradient = slope(nowhere)
        step, memory = optimiser.update(gradient, learner.memory)
        return Learner(*after(step), memory), (value, entropy)

    learner, (losses, entropies) = jax.lax.scan(learn, learner, order)
    earned = jnp.mean(jnp.sum(batch.reward, axis=0))
    normal = moments.moments(batch.features), moments.moments(batch.truth)
    return learner, Report(earned, jnp.mean(entropies), jnp.mean(losses), normal)


def train(
    dims: Dims,
    view: str,
    many: Params,
    settings: Settings,
    seed: int,
    teacher: tuple[Policy, Any] | None = None,
    advance: Callable[[str, Report], None] = lambda phase, report: None,
    start_weights: Weights | None = None,
) -> Weights:
    """Train on the scenarios of `many`, Params with a leading axis. `advance(phase, report)` follows each update.

    A teacher's parameters have that axis, too: on each scenario it has its own. The policy starts from `start_weights`
    if given, once the critic knows what it earns. Raises ValueError when `lanes` is no multiple of `minibatches`.
    """
    if settings.lanes % settings.minibatches:
        raise ValueError(f"lanes = {settings.lanes} is no multiple of minibatches = {settings.minibatches}")
    ticks = int(np.max(many.scenario.horizon))
    key = jax.random.fold_in(noise.root(seed), 0x7070)
    fresh = recurrent.init_weights(jax.random.fold_in(key, 2**31 - 1), settings.width, dims.restore)
    weights = fresh if start_weights is None else jax.tree.map(jnp.asarray, start_weights)
    critic = recurrent.init_critic(jax.random.fold_in(key, 2**31 - 2), settings.critic_width)
    phases: list[tuple[str, Policy | None, Any, int, float]] = []
    if start_weights is not None:
        # A new critic would lead a policy that is good already astray.
        phases.append((CRITIC, None, (), settings.critic_updates, settings.clone_rate))
    if teacher:
        phases.append((CLONING, *teacher, settings.clone_updates, settings.clone_rate))
    phases.append((PPO, None, (), settings.updates, settings.learning_rate))
    done, normal = 0, (moments.none(weights), moments.none(critic))
    for phase, policy, taught, updates, rate in phases:
        optimiser = _optimiser(settings, rate, updates)
        go = partial(update, dims, view, phase, policy, taught, ticks, settings, optimiser)
        learner = Learner(weights, critic, optimiser.init((weights, critic)))
        if not done:  # a batch that only tells what the features are like
            normal = go(normal, learner, many, jax.random.fold_in(key, 2**31 - 3))[1].normal
        for _ in range(updates):
            learner, report = go(normal, learner, many, jax.random.fold_in(key, done))
            done += 1
            advance(phase, report)
        weights, critic = learner.weights, learner.critic
    return weights


@cache
def _optimiser(settings: Settings, rate: float, updates: int) -> optax.GradientTransformation:
    steps = updates * settings.epochs * settings.minibatches
    schedule = optax.linear_schedule(rate, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(settings.max_gradient), optax.adam(schedule))

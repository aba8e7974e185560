"""The environment: reset, transition, observe, and `Env` with gymnax 1.0's signatures."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array

import scenarios
from jaxsim import actions, attacker, check, noise, reward, rules, stages, telemetry
from jaxsim.compile import check_dims, compile_scenario, dims_of
from jaxsim.defender import defend
from jaxsim.rules import restores
from jaxsim.types import (
    ATTACKER_DONE,
    EXFIL,
    HORIZON,
    RUNNING,
    AlertRing,
    Dims,
    ForensicRing,
    Forensics,
    Observation,
    Params,
    Pending,
    Personality,
    Signals,
    State,
)


class Drawn(NamedTuple):
    """What is drawn at reset; all else of a first state is the same for all episodes."""

    personality: Personality
    who: Array  # () int32
    dealt: attacker.Dealt


def draw(dims: Dims, key: Array, params: Params) -> Drawn:
    """The attacker's personality, and what its attack is."""
    [u] = noise.uniform(key, 1)
    before = jnp.cumsum(params.personality_weights)[:-1]
    who = jnp.sum(u >= before, dtype=jnp.int32)
    dealt = attacker.deal(dims, noise.bits(noise.fold_in(key, jnp.uint32(1)), 6), params)
    return Drawn(Personality(*(x[who] for x in params.personalities)), who, dealt)


def reset(dims: Dims, key: Array, params: Params) -> State:
    """Tick 0: nothing has happened, no alerts. Draws the attacker's personality and what its attack is."""
    return begin(dims, draw(dims, key, params), params)


def begin(dims: Dims, drawn: Drawn, params: Params) -> State:
    """Tick 0 of the episode for which these were drawn."""
    scenario, dealt = params.scenario, drawn.dealt
    f32, i32 = jnp.float32, jnp.int32
    s, n, lag, k, f = dims.stages, dims.entities, dims.max_lag, dims.alerts, dims.forensics
    return State(
        tick=jnp.zeros((), i32),
        end=jnp.full((), RUNNING, i32),
        acted=jnp.zeros((), bool),
        personality=drawn.personality,
        who=drawn.who,
        attack=dealt.attack,
        next_start=dealt.next_start,
        targets=dealt.targets,
        order=dealt.order,
        exfil=jnp.zeros((), bool),
        earned=jnp.zeros((), bool),
        idle=stages.packed(scenario.stage_exists),
        done=jnp.zeros(dims.words, jnp.uint32),
        blocked=stages.packed(~scenario.stage_exists),
        controls=jnp.zeros((3, dims.words), jnp.uint32),
        patched=jnp.zeros(dims.words, jnp.uint32),
        taken=jnp.zeros((2, dims.words), jnp.uint32),
        supported=stages.packed(jnp.all(scenario.needs == 0, axis=1) & jnp.all(scenario.options == 0, axis=1)),
        counted=jnp.zeros((2, dims.words), jnp.uint32),
        stage=jnp.full((), -1, i32),
        stage_end=jnp.zeros((), i32),
        left=jnp.zeros(s, i32),
        succeeded=jnp.zeros((), i32),
        compromised=jnp.zeros(n, bool),
        touched=jnp.zeros(n, bool),
        marks=jnp.zeros((4, n), bool),
        load=jnp.zeros((), f32),
        pending=Pending(jnp.zeros(lag, i32), jnp.zeros((lag, 2), i32), jnp.zeros((lag, 2), f32)),
        alerts=AlertRing(jnp.zeros(k, i32), jnp.zeros(k, f32), jnp.zeros(k, i32), jnp.zeros((), i32)),
        forensics=ForensicRing(
            jnp.zeros(f, i32), jnp.zeros(f, bool), jnp.zeros(f, f32), jnp.zeros(f, i32), jnp.zeros((), i32)
        ),
    )


@partial(jax.jit, static_argnames=("dims",), inline=True)  # programs share its trace
def transition(dims: Dims, state: State, action: Array, block: Array, params: Params) -> tuple[State, Signals]:
    """One tick, in the order of the rules. A pure function of its arguments; a finished state stays as it is.

    `action` is () int32 (see `actions`), `block` the (16,) uniforms of `noise.draw`.
    """
    live = state.end == RUNNING
    state = state._replace(tick=state.tick + live.astype(jnp.int32))

    state, defended = defend(dims, state, action, live, block, params)

    alerts = telemetry.surface(dims, state, live, telemetry.background(dims, state, live, block, params))
    state = state._replace(alerts=alerts)
    stage = state.stage
    state, active, exfil = attacker.progress(dims, state, live, block, params)
    state, started = attacker.start(dims, state, live, defended.acted, block, params)
    state = state._replace(pending=telemetry.raise_alerts(dims, state, started, block, params))
    state, idle = attacker.block_contained(state, live)

    state = state._replace(earned=state.earned | active | defended.evidence_paid)
    state, active_blocks, preemptive_blocks = attacker.count(state, stage, active, idle)
    state = state._replace(end=jnp.where(live, _end(state, params), state.end))
    return state, reward.signals(params, state, live, defended, active_blocks, preemptive_blocks, exfil)


def _end(state: State, params: Params) -> Array:
    """Why the episode is over at the end of a tick, or RUNNING, () int32."""
    beaten = (state.stage < 0) & jnp.all(attacker.ready(state) == 0)
    at_horizon = state.tick >= params.scenario.horizon
    over = at_horizon | (~params.rules.run_to_horizon & (state.exfil | beaten))
    early = beaten & ~params.rules.run_to_horizon
    return jnp.where(over, jnp.where(state.exfil, EXFIL, jnp.where(early, ATTACKER_DONE, HORIZON)), RUNNING)


@partial(jax.jit, static_argnames=("dims",), inline=True)  # programs share its trace
def observe(dims: Dims, state: State, params: Params) -> Observation:
    """What the defender sees; the only place where hidden truth is left out."""
    f = state.forensics
    return Observation(
        tick=state.tick,
        horizon=params.scenario.horizon,
        personality=jnp.where(params.rules.hide_personality, -1, state.who),
        exists=params.scenario.exists,
        value=params.scenario.value,
        marks=state.marks,
        alerts=telemetry.view(dims, state.alerts),
        forensics=Forensics(
            telemetry.ring_numbers(f.count, dims.forensics), f.entity, f.compromised, f.confidence, f.tick
        ),
    )


@dataclass(frozen=True)
class Env:
    """A compiled environment: static sizes, and the names that its actions speak of.

    `Env` holds no state and no parameters; every method is pure and can be jitted and vmapped with `params` traced.
    """

    dims: Dims
    auto_reset: bool = False

    def reset(self, key: Array, params: Params) -> tuple[Observation, State]:
        """First observation (tick 0) and state. Each episode wants a key of its own, see `step`."""
        check.key("key", key)
        check.kind("params", params, Params, "those that `make` returns")
        state = reset(self.dims, key, params)
        return observe(self.dims, state, params), state

    def step(
        self, key: Array, state: State, action: Array, params: Params
    ) -> tuple[Observation, State, Array, Array, Array, dict[str, Any]]:
        """`obs, state, reward, terminated, truncated, info`.

        Each step wants a key of its own, split from the last: a key that is used again brings the same luck again, so
        that the same alerts come tick after tick. A pure function cannot notice.

        The horizon is part of the game (it is observed and pays the terminal reward), so reaching it terminates;
        `truncated` is always False. `info` has `channels`, `signals`, `end` and, with `auto_reset`,
        `final_observation`: the last observation of the episode that ended, where `obs` is the next one's first.
        """
        check.key("key", key)
        check.kind("state", state, State, "the one that reset or the last step returned")
        check.actions("action", action, ())
        check.kind("params", params, Params, "those that `make` returns")
        step_key, reset_key = (key, key) if not self.auto_reset else jax.random.split(key)
        state, signals = transition(self.dims, state, action, noise.draw(step_key), params)
        channels = reward.channels(signals, params.reward)
        obs, done = observe(self.dims, state, params), state.end != RUNNING
        info = {"channels": channels, "signals": signals, "end": state.end}
        if self.auto_reset:
            info["final_observation"] = obs
            fresh = reset(self.dims, reset_key, params)
            state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, state)
            obs = observe(self.dims, state, params)
        return obs, state, reward.total(channels, params.reward), done, jnp.zeros((), bool), info

    def legal_actions(self, params: Params) -> Array:
        """(num_actions,) bool mask of the actions that are not invalid."""
        check.kind("params", params, Params, "those that `make` returns")
        return actions.legal_mask(self.dims, params.scenario.exists)

    @property
    def num_actions(self) -> int:
        """Size of the action table."""
        return self.dims.actions


def make(
    scenario: str | Path | scenarios.Scenario,
    *,
    rules: str = "hardened",
    reward: str | Mapping[str, float] = "operational",
    personality: str = "any",
    dims: Dims | None = None,
    auto_reset: bool = False,
) -> tuple[Env, Params]:
    """An environment and its parameters, by names.

    `scenario` is a built-in name, the path of a scenario file, or a loaded scenario; `reward` a preset's name or all
    weights by name; `dims` larger sizes to pad to, so that params of several scenarios can be stacked. The rules and
    the reward of the published simulator are "classic" and "evidence". Raises `scenarios.ScenarioError` for a bad
    scenario and ValueError for an unknown name, a bad weight, and dims whose `restore` is not that of the rules.
    """
    loaded = scenario if isinstance(scenario, scenarios.Scenario) else scenarios.load(scenario)
    dims = dims_of([loaded], restores(rules)) if dims is None else check_dims(dims)
    check.kind("auto_reset", auto_reset, bool, "True or False")
    return Env(dims, auto_reset), make_params(loaded, dims, rules, reward, personality)


def make_params(
    scenario: scenarios.Scenario,
    dims: Dims,
    rules_name: str,
    reward_weights: str | Mapping[str, float],
    personality: str,
) -> Params:
    """Parameters of one scenario, padded to `dims`, on the default device."""
    weights = reward.weights(reward_weights) if isinstance(reward_weights, str) else reward.from_mapping(reward_weights)
    if dims.restore != rules.restores(rules_name):
        raise ValueError(
            f"dims.restore = {dims.restore} does not fit rules {rules_name!r}; give Dims(restore={not dims.restore})"
        )
    table, probabilities = rules.personalities(personality)
    arrays = jax.device_put(compile_scenario(scenario, dims))
    return Params(arrays, rules.rules(rules_name), weights, table, probabilities)

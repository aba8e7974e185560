"""A witness: one episode of an exploit as a replay record, and a readable tick-by-tick view of any record."""

from typing import Any

import jax
import numpy as np

import scenarios
from jaxsim import noise
from jaxsim.audit.arena import Arena, Candidate
from jaxsim.names import action_text, end_name, entity_names
from jaxsim.one_episode import episode_keys
from jaxsim.reward import PRESETS
from jaxsim.rollouts import rollout_many
from jaxsim.types import CONFIRMED, RUNNING, STATUSES, Dims
from jaxsim.version import SIMULATOR_VERSION


def make_witness(arena: Arena, candidate: Candidate, r: int, seed: int, episodes: int = 64) -> dict[str, Any]:
    """The candidate's best of the first `episodes` episodes of `seed`, as a record that `replay` plays."""
    one = jax.tree.map(lambda x: np.asarray(x)[None], candidate.parameters)
    keys = episode_keys(noise.root(seed), episodes)
    stats, trajectory = rollout_many(arena.env, arena.params, candidate.policy, one, keys, record=True)
    assert trajectory is not None
    returns = stats.episode_return[0, :, r]
    episode = int(returns.argmax())
    actions = trajectory.action[0, episode, : stats.length[0, episode]]
    return {
        "version": SIMULATOR_VERSION,
        "scenario": arena.scenario.id,
        "rules": arena.rules,
        "reward": arena.rewards[r]
        if arena.rewards[r] in PRESETS
        else {k: float(v[r]) if np.isfinite(v[r]) else None for k, v in arena.params.reward._asdict().items()},
        "personality": arena.personality,
        "seed": seed,
        "episode": episode,
        "actions": [action_text(int(a), arena.scenario, arena.env.dims) for a in actions],
        "return": float(returns[episode]),
    }


def tick_rows(scenario: scenarios.Scenario, dims: Dims, played: Any) -> list[dict[str, str]]:
    """One row a tick: the attacker's truth beside what the defender saw, did and was paid."""
    names = entity_names(scenario, dims)
    rows = []
    before_alerts = before_results = 0
    for t in range(len(played.action)):
        if played.state.end[t] != RUNNING:
            break
        state = jax.tree.map(lambda x, t=t: x[t + 1], played.state)
        old = jax.tree.map(lambda x, t=t: x[t], played.state)
        obs = jax.tree.map(lambda x, t=t: x[t + 1], played.observation)
        fresh = np.flatnonzero(obs.alerts.number >= before_alerts)
        results = np.flatnonzero(obs.forensics.number >= before_results)
        before_alerts, before_results = int(state.alerts.count), int(state.forensics.count)
        channels = {k: float(v[t]) for k, v in played.channels._asdict().items() if abs(float(v[t])) > 5e-4}
        rows.append(
            {
                "tick": str(int(state.tick)),
                "attacker (hidden)": "\n".join(_truth(scenario, old, state, names)) or "-",
                "defender sees": "\n".join(_seen(obs, fresh, results, names)) or "-",
                "action": action_text(int(played.action[t]), scenario, dims),
                "reward": f"{float(played.reward[t]):+.3f}",
                "channels": " ".join(f"{k} {v:+.2f}" for k, v in channels.items()) or "-",
            }
        )
    return rows


def _truth(scenario: scenarios.Scenario, old: Any, new: Any, names: list[str | None]) -> list[str]:
    lines = []
    for stage, was, now in zip(scenario.stages, old.status, new.status, strict=False):
        if was != now:
            lines.append(f"{stage.id}: {STATUSES[int(now)]}")
    lines += [f"{names[e]} compromised" for e in np.flatnonzero(new.compromised & ~old.compromised)]
    if new.end != RUNNING:
        lines.append(f"end: {end_name(scenario, int(new.end), new.status)}")
    return lines


def _seen(obs: Any, alerts: np.ndarray, results: np.ndarray, names: list[str | None]) -> list[str]:
    lines = []
    for k in sorted(alerts, key=lambda k: int(obs.alerts.number[k])):
        who = [names[e] or "?" for e in (int(obs.alerts.asset[k]), int(obs.alerts.identity[k])) if e >= 0]
        signal = scenarios.SIGNALS[int(obs.alerts.signal[k])]
        lines.append(f"alert {signal} {float(obs.alerts.severity[k]):.2f} {' + '.join(who) or '(names nothing)'}")
    for k in sorted(results, key=lambda k: int(obs.forensics.number[k])):
        entity = int(obs.forensics.entity[k])
        verdict = "compromised" if obs.forensics.compromised[k] else "clean"
        mark = ", confirmed" if obs.marks[CONFIRMED, entity] else ""
        lines.append(f"forensics {names[entity]}: {verdict} {float(obs.forensics.confidence[k]):.2f}{mark}")
    return lines

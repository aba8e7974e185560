"""The simulator against its plain-Python twin on the same noise, tick by tick, and how episodes are dealt."""

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import CELLS, DIMS, END, PRESETS, SCENARIOS, STATUS, SWITCHES, params_of
from parity import RULES_ONLY, Played, Reader, deal, first_difference, rows, skipped
from random_play import CLASSIC, EPISODES, MIXED, MIXED_LIFTABLE, OFF, ON, RULES, random_play, rules_of

from jaxsim import attacker, env, rules, twin, twin_rules, twin_state
from jaxsim.one_episode import episode_keys, start
from jaxsim.types import (
    CONFIRMED,
    CUT_OFF,
    EGRESS_BLOCKED,
    PATCHED,
    RUNNING,
    Dims,
    Observation,
    Params,
    Signals,
)

# --- tick by tick -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("under", [CLASSIC, MIXED, MIXED_LIFTABLE])
@pytest.mark.parametrize(("name", "personality"), CELLS)
def test_every_tick_equals_the_twin(name: str, personality: str, under: str) -> None:
    """State, alerts in arrival order, forensics, signals, channels and totals of every tick, under four rewards."""
    reader, plans, each, played = random_play(name, personality, under)
    assert (played.state.end[:, -1] != RUNNING).all()
    assert skipped(reader, plans, played, each) < 0.01 * EPISODES


def test_random_play_leaves_nothing_out() -> None:
    """Over all cells every signal, end and control occurs, and views run over."""
    signals, ends, marks, most = np.zeros(len(Signals._fields)), set[int](), np.zeros(4, bool), (0, 0)
    for cell in CELLS:
        played = random_play(*cell, CLASSIC).played
        signals += [x.sum() for x in played.signals]
        ends |= set(played.state.end.ravel().tolist())
        marks |= played.state.marks.any(axis=(0, 1, 3))
        most = max(most[0], played.state.alerts.count.max()), max(most[1], played.state.forensics.count.max())
    assert [field for field, n in zip(Signals._fields, signals, strict=True) if n == 0] == []
    assert ends == set(range(len(END))) and marks.all()
    assert most[0] > DIMS.alerts and most[1] > DIMS.forensics


def test_liftable_random_play_lifts_and_rebuilds() -> None:
    """All marks but a patch go again, what fell is won back, and stages are freed."""
    gone, won_back, freed = np.zeros(4, int), 0, 0
    for cell in CELLS:
        state = random_play(*cell, MIXED_LIFTABLE).played.state
        gone += (state.marks[:, :-1] & ~state.marks[:, 1:]).sum(axis=(0, 1, 3))
        won_back += (state.compromised[:, :-1] & ~state.compromised[:, 1:]).sum()
        freed += ((state.status[:, :-1] == STATUS.index("blocked")) & (state.status[:, 1:] == 0)).sum()
    assert gone[PATCHED] == 0 and min(*gone[[CUT_OFF, EGRESS_BLOCKED, CONFIRMED]], won_back, freed) > 20


# Not who knows the personality, and not how roles are dealt: an episode is read as it was dealt.
@pytest.mark.parametrize("switch", [s for s in SWITCHES if s not in ("hide_personality", "believable_paths")])
@pytest.mark.parametrize("personality", ["stealthy", "opportunistic"])
def test_a_wrong_switch_is_noticed(switch: str, personality: str) -> None:
    """In random play each switch makes a difference that the comparison sees, in one scenario or another."""
    assert any(is_noticed(name, switch, personality) for name in ("routine", "branching", "supply_chain_token_drift"))


def is_noticed(name: str, switch: str, personality: str) -> bool:
    """Whether the twin with the switch off differs somewhere from an episode with the switch on."""
    reader, plans, each, played = random_play(name, personality, MIXED_LIFTABLE)
    for e, own in enumerate(each):
        if getattr(own, switch) == getattr(ON, switch):
            episode = rows(jax.tree.map(lambda x, e=e: x[e], played), int(played.state.tick[e, -1]))
            flipped = own._replace(**{switch: getattr(OFF, switch)})
            try:
                if first_difference(reader, plans[e].tolist(), episode, flipped) is not None:
                    return True
            except AssertionError:  # not even dealt by such rules, or over too soon
                return True
    return False


WATCHED = (
    *("tick", "end", "acted", "idle", "done", "blocked", "stage", "compromised", "marks", "load"),
    *("attack", "targets", "next_start", "exfil", "earned", "touched", "counted", "left"),
    *("alerts.code", "alerts.severity", "alerts.tick", "alerts.count"),
    *("forensics.entity", "forensics.compromised", "forensics.confidence", "forensics.tick", "forensics.count"),
)


def test_a_difference_is_noticed() -> None:
    """The comparison itself: one number changed anywhere in the record of one tick must be reported."""
    personality, middle = "opportunistic", 15
    reader, plans, each, played = random_play("branching", personality, MIXED_LIFTABLE)
    attacked = played.state.attack[:, 0] & [r.run_to_horizon and r.unknown_path for r in each]
    attacked &= played.state.stage[:, middle] + 1 < len(reader.stages)  # so that there is a next one
    e = int(np.argmax(attacked * np.minimum(played.state.alerts.count, played.state.forensics.count)[:, middle]))
    length = int(played.state.tick[e, -1])
    episode = jax.tree.map(lambda x: x[e], played)

    def goes_unnoticed(changed: Played) -> bool:
        return first_difference(reader, plans[e].tolist(), rows(changed, length), each[e]) is None

    assert goes_unnoticed(episode)
    watched = [f"state.{field}" for field in WATCHED]
    for group in ("signals", "channels"):
        watched += [f"{group}.{field}" for field in getattr(episode, group)._fields]
    assert [field for field in (*watched, "total") if goes_unnoticed(spoil(episode, field, middle))] == []
    order = episode.state.order.copy()
    order[middle] *= -1
    assert not goes_unnoticed(episode._replace(state=episode.state._replace(order=order)))


def spoil(tree: Any, path: str, tick: int) -> Any:
    """The tree with the first number of one leaf changed at one tick, to another that the leaf might hold."""
    head, _, rest = path.partition(".")
    if rest:
        return tree._replace(**{head: spoil(getattr(tree, head), rest, tick)})
    old = getattr(tree, head)
    x = old.copy().reshape(len(old), -1)
    # The low bits of an alert's code are its signal, one of five.
    old_one = x[tick, 0]
    x[tick, 0] = not old_one if x.dtype == bool else old_one - 1 if old_one % 8 == 4 else old_one + 1
    return tree._replace(**{head: x.reshape(old.shape)})


@pytest.mark.parametrize("personality", ["stealthy", "opportunistic"])
def test_what_failed_last_is_preferred_as_by_the_twin(personality: str) -> None:
    """Three ways in fail again and again: one attacker insists on the last of them, the other tries what did not."""
    persistent = rules.rules("classic+persistence")
    params = params_of("routine", personality)._replace(rules=persistent)
    reader = Reader(SCENARIOS["routine"], personality)
    theirs = twin_state.reset(reader.scenario, personality, twin_rules.CLASSIC._replace(persistence=True))
    state, fails = jax.jit(start, static_argnums=0)(DIMS, jax.random.key(0), params), jnp.full(16, 0.999, jnp.float32)
    progress = jax.jit(lambda s: attacker.progress(DIMS, s, jnp.bool_(True), fails, params)[0])
    for k in (1, 2, 0, 1, 1, 0):
        state = progress(state._replace(stage=jnp.int32(k)))
        twin.reorder(theirs, theirs.stages[reader.stages[k]])
        assert reader.order(jax.tree.map(lambda x: x.tolist(), state)) == theirs.order


def test_presets_are_the_twins() -> None:
    for name, preset in PRESETS.items():
        ours = rules.rules(name)._asdict() | {"liftable": rules.restores(name)}
        for switch in SWITCHES:
            np.testing.assert_allclose(ours[switch], getattr(preset, switch), rtol=1e-6, err_msg=switch)


def test_episodes_are_dealt_evenly() -> None:
    """Whether there is an attack, its delay, who plays which role and the order of preference, and any two of them."""
    episodes, scenario, chance = 40_000, SCENARIOS["routine"], twin_rules.HARDENED.attack_probability
    params = params_of("routine", "stealthy")._replace(rules=rules.rules("hardened"))
    dealt = jax.tree.map(np.asarray, deal(DIMS, params, episode_keys(jax.random.key(61), episodes)))
    attack, stages = dealt.attack, np.arange(len(scenario.stages))
    assert abs(attack.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / episodes)
    delay = dealt.next_start[:, None]
    # Of four roles, three say all: relay, laptop and portal. So do two of three: dave and erin.
    assets, identities = dealt.targets[:, 0, [2, 3, 0]], dealt.targets[:, 1, [1, 3]]
    order = np.argsort(dealt.order[:, stages], axis=1, kind="stable")
    parts = [(delay, 21), (assets, 24), (identities, 6), *((order[:, pair], 56) for pair in ([0, 1], [3, 7]))]
    for (a, n), (b, m) in itertools.combinations(parts[:4], 2):
        assert is_even(np.hstack([a, b]), n * m)
    for values, n in parts:
        assert is_even(values[attack], n) and is_even(values[~attack], n)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_believable_episodes_are_dealt_evenly_among_those_alike(share: float) -> None:
    """Two services of the edge, two hosts of the office and two clerks play for each other, each pair for itself."""
    episodes, scenario = 40_000, SCENARIOS["branching"]
    hardened = rules.rules("hardened")._replace(believable_paths=jnp.float32(share))
    params = params_of("branching", "stealthy")._replace(rules=hardened)
    dealt = jax.tree.map(np.asarray, deal(DIMS, params, episode_keys(jax.random.key(62), episodes)))
    mailer, proxy, ledger, desktop = dealt.targets[:, 0, [0, 1, 2, 3]].T
    bob, alice = dealt.targets[:, 1, [1, 4]].T - DIMS.assets
    pairs = np.stack([mailer, desktop, alice], axis=1)
    believable = (ledger == 3) & (bob == 1) & np.isin(mailer, [0, 1]) & np.isin(proxy, [0, 1])
    believable &= np.isin(desktop, [2, 4]) & np.isin(alice, [0, 2])
    # Of those dealt among all, 4 of 5! casts of assets and 2 of 3! of identities are so by luck.
    chance = share + (1 - share) / 90
    for some in (dealt.attack, ~dealt.attack):
        assert abs(believable[some].mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / some.sum())
        assert is_even(pairs[believable & some], 8)
    order = np.argsort(dealt.order[:, : len(scenario.stages)], axis=1, kind="stable")[:, [0, 1]]
    assert is_even(np.hstack([pairs, order])[believable], 8 * 30)
    assert share == 1 or is_even(order[~believable], 30)


def is_even(values: np.ndarray, kinds: int) -> bool:
    """Whether the rows fall on so many kinds of row as even chance would have it."""
    counts = np.unique(values, axis=0, return_counts=True)[1]
    mean = len(values) / kinds
    chi_square = ((counts - mean) ** 2 / mean).sum()
    return len(counts) == kinds and abs(chi_square - kinds + 1) < 5 * math.sqrt(2 * (kinds - 1))


@pytest.mark.parametrize("personality", twin_rules.PERSONALITIES)
def test_the_personality_seen_is_the_twins(personality: str) -> None:
    params = params_of("routine", personality)
    seen = see(DIMS, params._replace(rules=rules_of(RULES)), jax.random.key(7)).personality
    for ours, own in zip(seen.tolist(), RULES, strict=True):
        theirs = twin_state.personality_seen(twin_state.reset(SCENARIOS["routine"], personality, own))
        assert ours == (-1 if theirs is None else list(twin_rules.PERSONALITIES).index(theirs))


@partial(jax.jit, static_argnames="dims")
@partial(jax.vmap, in_axes=(None, RULES_ONLY, None))
def see(dims: Dims, params: Params, key: jax.Array) -> Observation:
    """What is seen of an episode at tick 0."""
    return env.observe(dims, start(dims, key, params), params)

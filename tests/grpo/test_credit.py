"""Return-to-go against a plain loop, what ranks first, and what the numbers say."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forks import (
    CLASSIC,
    DIMS,
    FUTURES,
    HARDENED,
    KEY,
    PARAMETERS,
    as_bank,
    before_exfil,
    by_hand,
    collected,
    one,
    play,
    redeal,
    rows_of,
    scripted,
)

from grpo.rows import bank as banks
from grpo.rows import credit as credits
from jaxsim import env, reward
from jaxsim.actions import legal_mask, table
from jaxsim.noise import Noise
from jaxsim.one_episode import episode_keys, tick_noise
from jaxsim.policies import BASELINES, EVIDENCE
from jaxsim.types import (
    HORIZON,
    INVESTIGATE,
    ISOLATE_ASSET,
    MONITOR,
    RUNNING,
    Params,
    State,
)


def late_rows() -> np.ndarray:
    """Two rows of each campaign near the end, that a plain loop can play; the first campaign is the shorter one."""
    bank = collected()
    left = np.asarray(HARDENED.scenario.horizon)[bank.params_index] - bank.state.tick
    late = [np.flatnonzero((bank.params_index == p) & (left <= 14) & (left >= 5))[:2] for p in (0, 1)]
    return np.concatenate(late)


# --- against a plain loop ---------------------------------------------------------------------------------------------


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None, 0))
def tick(state: State, action: Any, params: Params, future: Any) -> tuple[State, Any]:
    """(state after it, points) in each future."""
    block = tick_noise(future, state.tick + 1)
    after, signals = env.transition(DIMS, state, action, block, params)
    return after, reward.total(reward.channels(signals, params.reward), params.reward)


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, None, 0))
def act(memory: Any, state: State, params: Params, future: Any) -> Any:
    """(action, memory) in each future."""
    draws = tick_noise(future, state.tick + 1)[Noise.POLICY_VERB :]
    return EVIDENCE.act(DIMS, PARAMETERS, memory, env.observe(DIMS, state, params), draws)


look = jax.jit(jax.vmap(partial(env.observe, DIMS), in_axes=(0, None)))


def played(state: State, action: int, params: Params, futures: Any) -> np.ndarray:
    """The return-to-go in each of the futures, step by step; what has ended is left alone."""
    choice, total, running, memory = np.full(FUTURES, action, np.int32), np.zeros(FUTURES), np.ones(FUTURES, bool), None
    while running.any():
        if memory is not None:
            choice, memory = act(memory, state, params, futures)
        state, points = tick(state, choice, params, futures)
        total += np.where(running, points, 0.0)
        running &= np.asarray(state.end) == RUNNING
        if memory is None:
            seen, fresh = look(state, params).forensics, EVIDENCE.init(DIMS, PARAMETERS)
            counts = np.tile(fresh.counts, (FUTURES, 1))
            for lane, slot in np.argwhere(seen.number >= 0):
                counts[lane, seen.entity[lane, slot]] += 1
            memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (FUTURES, *x.shape)), fresh)._replace(counts=counts)
    return total


def begun(bank: banks.Bank, row: int, params: Params, redealt: bool) -> tuple[State, Any]:
    """A row's (states, futures)."""
    futures, state = episode_keys(jax.random.fold_in(KEY, row), FUTURES), one(bank, row)
    again = [redeal(state, params, jax.random.fold_in(f, credits.REDEAL)) if redealt else state for f in futures]
    return jax.tree.map(lambda *x: jnp.stack(x), *again), futures


@pytest.mark.parametrize("redealt", [False, True])
def test_equals_a_plain_loop_on_the_same_noise(redealt: bool) -> None:
    bank = banks.take(collected(), late_rows())
    credit = play(HARDENED, bank, key=KEY, redealt=redealt)
    for row in range(4):
        params = rows_of(bank.params_index[row])
        legal = np.flatnonzero(legal_mask(DIMS, params.scenario.exists))
        np.testing.assert_array_equal(np.flatnonzero(credit.legal[row]), legal)
        states, futures = begun(bank, row, params, redealt)
        some = legal[row % 2 :: 5]
        returns = [played(states, action, params, futures).mean() for action in some]
        np.testing.assert_allclose(credit.q[row, some], returns, atol=1e-4)
    assert np.isnan(credit.q[~credit.legal]).all() and np.isfinite(credit.q[credit.legal]).all()
    assert (~credit.legal).any(), "the campaigns differ in size, so that some actions are not legal"


def test_se_is_of_the_paired_difference_to_the_mean() -> None:
    bank = banks.take(collected(), late_rows()[:1])
    credit = play(HARDENED, bank, key=KEY)
    params, legal = rows_of(bank.params_index[0]), np.flatnonzero(credit.legal[0])
    states, futures = begun(bank, 0, params, redealt=True)
    totals = np.stack([played(states, action, params, futures) for action in legal], axis=1)
    apart = totals - np.mean(totals, axis=1, keepdims=True)
    np.testing.assert_allclose(credit.se[0, legal], apart.std(axis=0, ddof=1) / np.sqrt(FUTURES), atol=1e-4)
    assert credit.futures.tolist() == [FUTURES] and credit.beliefs.tolist() == [1]


def test_the_same_action_has_the_same_futures() -> None:
    bank = collected()
    again = np.asarray([7, 0, 7, 0, 7], np.int32)
    row = credits._Row(one(bank, 0), jnp.int32(0), jnp.int32(0), jnp.asarray(again), jnp.int32(5))
    fork = jax.jit(partial(credits._fork, DIMS, EVIDENCE, FUTURES, True, PARAMETERS))
    mean, se = fork(HARDENED, KEY, row)
    assert mean[0] == mean[2] == mean[4] != mean[1] == mean[3]
    assert se[0] == se[2] == se[4]


def test_actions_that_are_not_tried_change_nothing_for_others() -> None:
    bank = banks.take(collected(), late_rows())
    whole = play(HARDENED, bank, key=KEY)
    some = whole.legal & (np.arange(DIMS.actions) % 3 == 0)
    found = play(HARDENED, bank, key=KEY, some=some)
    np.testing.assert_array_equal(found.legal, some)
    np.testing.assert_allclose(found.q[some], whole.q[some], atol=credits.ROUNDING)
    assert np.isnan(found.q[~some]).all()
    for wrong in (~whole.legal, whole.legal[:1], np.zeros_like(some)):
        with pytest.raises(ValueError, match="some is no choice of legal actions of each row; give bools of shape"):
            play(HARDENED, bank, key=KEY, some=wrong)


def test_luck_is_a_rows_own_whatever_the_chunk() -> None:
    bank = banks.take(collected(), np.arange(9))
    whole = play(HARDENED, bank, key=KEY)
    for other in (play(HARDENED, bank, key=KEY, chunk=4), play(HARDENED, banks.take(bank, np.arange(5)), key=KEY)):
        for a, b in zip(whole, other, strict=True):
            np.testing.assert_allclose(a[: len(b)], b, atol=1e-4)
    twice = play(HARDENED, banks.take(bank, [0, 0]), key=KEY)
    assert (twice.q[0] != twice.q[1])[twice.legal[0]].any(), "the same state in two rows has luck of two kinds"


def test_the_classic_rules_end_early_and_other_policies_go_on() -> None:
    bank = banks.take(scripted(KEY), np.arange(8))
    acting = play(CLASSIC, bank, key=KEY)
    idle = play(CLASSIC, bank, *BASELINES["monitor"], KEY)
    assert np.isfinite(idle.q[idle.legal]).all() and (idle.q != acting.q)[idle.legal].any()


# --- ranking ----------------------------------------------------------------------------------------------------------


def test_a_blind_guess_is_best_only_while_the_fork_may_peek() -> None:
    state, stops = before_exfil()
    bank = as_bank([state] * 24, [0] * 24)
    peeks, fair = (np.mean(play(HARDENED, bank, key=KEY, redealt=redealt).q, axis=0) for redealt in (False, True))
    assert peeks[stops] > peeks[0] + 2 and peeks[stops] == np.nanmax(peeks), "blocking the way out"
    assert fair[stops] < peeks[stops] - 2
    verbs, entities = table(DIMS)
    isolating = (verbs == ISOLATE_ASSET) & np.isfinite(fair)
    cost = 0.052 * 30 * np.asarray(HARDENED.scenario.value[0])[entities[isolating]]
    assert np.ptp(fair[isolating] + cost) < 2.5 < np.ptp(peeks[isolating] + cost), "but for the cost, guesses are alike"


def test_with_no_attack_a_control_only_costs() -> None:
    state, _ = before_exfil()
    calm = state._replace(attack=jnp.bool_(False), stage=jnp.int32(-1))
    credit = play(HARDENED, as_bank([calm], [0]), key=KEY)
    verbs, _ = table(DIMS)
    wait, look, cut = (credit.q[0, verbs == v] for v in (MONITOR, INVESTIGATE, ISOLATE_ASSET))
    assert wait > np.nanmax(cut) + 0.5 and np.nanmax(np.abs(look - wait)) < 0.5


# --- what the numbers say ---------------------------------------------------------------------------------------------


def test_informative_by_hand() -> None:
    legal = 41
    q = np.zeros((5, legal + 1))
    q[:, 0], q[:, -1] = [4.0, 4.3, 0.0, 1e-5, 0.0], np.nan  # in units of an error of 1 of each action
    q[4, 1] = -300.0  # one very bad action lifts all others above the mean
    se = np.ones((5, legal + 1))
    se[3:] = 0.0
    credit = by_hand(q, se)
    assert credits.informative(credit).tolist() == [False, True, False, False, True]
    assert credits.informative(credit, least=4.25).tolist() == [False, False, False, False, True]
    assert credits.informative(credit, z=2.0).tolist() == [True, True, False, False, True]
    more = credit._replace(futures=credit.futures * 8)  # less uncertain about its own error
    assert credits.informative(more)[0]
    with pytest.raises(ValueError, match="z = 0 is not positive"):
        credits.informative(credit, z=0)


def test_regret_and_scale_by_hand() -> None:
    credit = by_hand([[1, 5, 3, np.nan], [2, 2, 2, 2]], np.zeros((2, 4)))
    rows, done = np.asarray([0, 0, 0, 1, 0]), np.asarray([1, 0, 3, 2, -1])
    np.testing.assert_allclose(credits.regret(credit, rows, done), [0, 4, np.nan, 0, np.nan])
    np.testing.assert_allclose(credits.scaled(credit), [[0, 1, 0.5, np.nan], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"futures": 1}, "futures = 1 is too few"),
        ({"chunk": 0}, "chunk = 0 is too few"),
    ],
)
def test_bad_numbers_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(HARDENED, collected(), **change)


def test_bad_rows_are_refused() -> None:
    bank = banks.take(collected(), [0, 1])
    with pytest.raises(ValueError, match="row 1 of the bank has ended"):
        play(HARDENED, bank._replace(state=bank.state._replace(end=np.asarray([RUNNING, HORIZON], np.int32))))
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        play(HARDENED, bank._replace(params_index=bank.params_index + 2))
    with pytest.raises(ValueError, match="rows of the bank = 0"):
        play(HARDENED, banks.take(bank, []))

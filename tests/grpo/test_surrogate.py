"""The stand-in for a language model: it acts as whoever it was fitted to, and what that makes of credit."""

from typing import Any

import jax
import numpy as np
import pytest

from grpo.rows import bank as banks
from grpo.rows import credit, rows, surrogate
from jaxsim import noise, recurrent
from jaxsim.actions import table
from jaxsim.audit import checkpoint
from jaxsim.policies import BASELINES, DEFAULT_EVIDENCE, EVIDENCE
from jaxsim.types import CONFIRMED, CUT_OFF, INVESTIGATE, ISOLATE_ASSET, MONITOR, REVOKE_IDENTITY

LOOKS = DEFAULT_EVIDENCE._replace(contain_at=np.float32(np.inf))  # before it contains


@pytest.fixture(scope="module")
def looked(game: rows.Campaigns) -> banks.Bank:
    """States of a policy that contains what it has confirmed, one tick later."""
    return banks.collect_heuristic(game.env, game.params, EVIDENCE, LOOKS, noise.root(5), 96, 16)


def waiting(game: rows.Campaigns, many: int) -> np.ndarray:
    return np.eye(game.dims.actions)[np.full(many, MONITOR)]


@pytest.mark.slow
def test_it_acts_as_whoever_it_was_fitted_to(game: rows.Campaigns, looked: banks.Bank) -> None:
    bank, weights = looked, checkpoint.load(checkpoint.own("hardened", "operational", recurrent.MEMORYLESS)).weights
    own = rows.chances(game, bank, recurrent.Learned(weights, np.bool_(False), recurrent.SIGHTS[recurrent.MEMORYLESS]))
    found = surrogate.fit(game.dims, game.params, bank, own, seed=0)
    blind = np.broadcast_to(own.mean(axis=0), own.shape)
    assert found.agreement["rows"] == int(surrogate.APART * len(own))
    assert found.agreement["distance"] < 0.5 * surrogate.agreement(own, blind)["distance"]
    # Begun at the teacher itself there is nothing to learn.
    assert surrogate.fit(game.dims, game.params, bank, own, 0, weights).agreement["distance"] < 0.02
    again = surrogate.fit(game.dims, game.params, bank, own, seed=0)
    jax.tree.map(np.testing.assert_array_equal, again.learned, found.learned)
    with pytest.raises(ValueError, match="4 rows are too few"):
        surrogate.fit(game.dims, game.params, banks.take(bank, np.arange(4)), own[:4], seed=0)


def test_agreement_by_hand() -> None:
    own, found = np.asarray([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]]), np.asarray([[1.0, 0.0], [0.25, 0.75], [0.9, 0.1]])
    assert surrogate.agreement(own, found) == {"rows": 3, "distance": pytest.approx(0.95 / 3), "same": 1 / 3}


def confirmed_once(game: rows.Campaigns, bank: banks.Bank) -> tuple[banks.Bank, np.ndarray]:
    """States with one confirmed entity, compromised and not cut off, of an attack that goes on; the action for each."""
    verbs, entities = table(game.dims)
    marks, state = np.asarray(bank.state.marks), bank.state
    open_ = marks[:, CONFIRMED] & ~marks[:, CUT_OFF] & np.asarray(state.compromised)
    right = (open_.sum(axis=1) == 1) & np.asarray(state.attack) & ~np.asarray(state.exfil)
    which = np.flatnonzero(right)[:8]
    cut_off = np.isin(verbs, (ISOLATE_ASSET, REVOKE_IDENTITY))
    action = [int(np.flatnonzero(cut_off & (entities == open_[r].argmax()))[0]) for r in which]
    assert len(which) == 8
    return banks.take(bank, which), np.asarray(action)


@pytest.mark.slow
def test_a_student_that_waits_is_paid_for_containing_what_is_confirmed(
    game: rows.Campaigns, looked: banks.Bank
) -> None:
    """A successor that cleans up makes waiting worth nearly as much as acting: the student would never learn to act."""
    bank, contain = confirmed_once(game, looked)
    stand_in = surrogate.fit(game.dims, game.params, looked, waiting(game, len(looked.action)), seed=1)

    def worth(policy: Any, parameters: Any) -> tuple[float, float]:
        """(points by which containing is ahead of waiting; those by which the best look is)."""
        found = credit.returns_to_go(
            game.dims, game.params, bank, policy, parameters, noise.root(7), futures=16, redealt=False
        )
        at = np.arange(len(contain))
        ahead = found.q - found.q[:, [MONITOR]]
        verbs, _ = table(game.dims)
        looks = np.where(verbs == INVESTIGATE, ahead, -np.inf)
        return float(ahead[at, contain].mean()), float(np.nanmax(looks, axis=1).mean())

    nobody, _ = worth(*BASELINES["monitor"])
    student, looking = worth(surrogate.POLICY, stand_in.learned)
    helped, _ = worth(EVIDENCE, DEFAULT_EVIDENCE)
    assert student > looking and student > 0.5 * nobody > 0
    assert helped < 0.5 * nobody

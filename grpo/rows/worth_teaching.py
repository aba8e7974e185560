"""What a model is to learn, and where: in its own play, and in that of its stand-in before and after it improved."""

from collections.abc import Sequence

import jax
import numpy as np

from grpo.rows import bank as banks
from grpo.rows import credit as credits
from grpo.rows import critic, rows, surrogate
from grpo.rows.bank import Bank
from grpo.rows.rows import Campaigns, Rows
from jaxsim import noise
from jaxsim.recurrent import Learned

CHOSEN = 0x63686F73  # mixed into the seed of what is chosen
FUTURES_APART = 16  # of rows that are kept apart, at least


def improved(
    game: Campaigns,
    bank: Bank,
    apart: Sequence[int],
    who: Learned,
    *,
    rounds: int,
    states: int,
    futures: int,
    eta: float,
    many: int,
    seed: int,
    layout: str,
) -> tuple[Rows, critic.Improved]:
    """Rows worth teaching to whom the memoryless policy `who` stands in for, and what became of that policy.

    First those of `bank` that are kept `apart`, with the return-to-go of `who`, and not `informative`. Then at most
    `many` others of it and of the play of `who` and of what became of it, with what the critics say together. What is
    chosen hangs on what they show alone: see `worth_teaching`.
    """
    dims, params = game.dims, game.params
    better = critic.improve(game.env, params, who, seed, rounds=rounds, states=states, futures=futures, eta=eta)
    rest = np.setdiff1d(np.arange(len(bank.params_index)), apart)
    played = [critic.play_of(game.env, params, x, seed + CHOSEN, critic.PLAY) for x in (who, better.learned)]
    pool = banks.concatenate([banks.take(bank, rest), *played])
    first, judged = surrogate.chances(dims, params, pool, who), critic.credit(dims, params, pool, better.critics)
    which = worth_teaching(game, first, critic.target(first, judged, eta), len(rest), many, seed)
    kept, key = banks.take(bank, np.asarray(apart)), jax.random.fold_in(noise.root(seed), CHOSEN)
    forked = credits.returns_to_go(dims, params, kept, surrogate.POLICY, who, key, futures=max(futures, FUTURES_APART))
    taught = jax.tree.map(lambda x: x[which], judged)
    whole = banks.concatenate([kept, banks.take(pool, which)])
    found = Rows(
        whole,
        rows.prompts_of(game, whole, layout),
        jax.tree.map(lambda *x: np.concatenate(x), forked, taught),
        rows.step_rewards(game, whole, seed),
        np.arange(len(whole.params_index)) >= len(apart),
    )
    return found, better


def worth_teaching(game: Campaigns, first: np.ndarray, then: np.ndarray, own: int, many: int, seed: int) -> np.ndarray:
    """At most `many` rows, in their order: two fifths in which `then` would act, two fifths in which it differs most.

    `first` and `then`, (R, A), are the chances of a policy and of what became of it. Differences are total variation
    distances; a row's chance to be among the second kind grows with its square. The last fifth is drawn from all of
    the `own` first rows, and so is what there is not enough of.
    """
    rng = np.random.default_rng([seed, CHOSEN])
    distance = np.abs(then - first).sum(axis=1) / 2
    order = 2 * np.log(np.maximum(distance, 1e-9)) + rng.gumbel(size=len(distance))
    acts = np.flatnonzero(rows.acting(game, then.argmax(axis=1)))
    acts = rng.permutation(acts)[: 2 * many // 5]
    order[acts] = -np.inf
    changed = np.argsort(-order)[: min(2 * many // 5, len(order) - len(acts))]
    left = np.setdiff1d(np.arange(own), [*acts, *changed])
    others = rng.permutation(left)[: many - len(acts) - len(changed)]
    return np.sort(np.concatenate([acts, changed, others]))

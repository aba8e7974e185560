"""Credit averaged over the hidden states that a row cannot be told from."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from chex import Array

from grpo.rows.bank import Bank, Groups, concatenate, groups, take
from grpo.rows.credit import Credit, returns_to_go
from jaxsim.policies import BASELINES, EVIDENCE, Policy
from jaxsim.types import Dims, Params


def pool_beliefs(credit: Credit, rows: Groups) -> Credit:
    """Average the credit over the rows of a group, from action to corresponding action, see `bank.groups`.

    Within a row, actions that differ only in which of several alike and unnamed entities they name are averaged first.
    That also holds for a row alone in its group; `beliefs`, the rows of each group, is 1 for it. `se` is the larger of
    what the futures leave, sqrt(sum se^2) / M, and what the M rows differ by, sd / sqrt(M): one counts luck, the other
    hidden states. For a few rows the second is itself rough.
    """
    row, action = np.nonzero(credit.legal)
    slots = np.int64(rows.slot.max()) + 1
    # Cells: a row's distinct actions, then a group's.
    own, cell = np.unique(row * slots + rows.slot[row, action], return_inverse=True)
    _, whole = np.unique(rows.group[own // slots] * slots + own % slots, return_inverse=True)
    centred = credit.q - np.nanmean(credit.q, axis=1, keepdims=True)
    members, many = np.bincount(cell), np.bincount(whole)

    def of_cells(x: Array) -> Array:
        return np.bincount(cell, x[row, action].astype(np.float64)) / members

    q, gain, error = of_cells(credit.q), of_cells(centred), of_cells(credit.se)
    mean = np.bincount(whole, q) / many
    apart = gain - (np.bincount(whole, gain) / many)[whole]
    between = np.bincount(whole, apart**2) / np.maximum(many - 1, 1) / many
    luck = np.bincount(whole, error**2) / many**2
    pooled = [np.full(credit.q.shape, np.nan, np.float32) for _ in range(2)]
    for x, found in zip(pooled, (mean, np.sqrt(np.maximum(luck, between))), strict=True):
        x[row, action] = found[whole][cell]
    return credit._replace(q=pooled[0], se=pooled[1], beliefs=np.bincount(rows.group)[rows.group].astype(np.int32))


def beliefs(
    dims: Dims,
    params: Params,
    bank: Bank,
    reference: Bank,
    policy: Policy = EVIDENCE,
    parameters: Any = BASELINES["evidence"][1],
    key: Array | None = None,
    *,
    most: int = 16,
    futures: int = 32,
    reference_futures: int = 8,
    digits: int = 1,
    campaign: Array | None = None,
    chunk: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> Credit:
    """`returns_to_go` of the bank's rows, averaged over hidden states that they cannot be told from.

    `reference` holds states of many other episodes of the same campaigns, played by the same behaviour. Those that show
    what a row shows are draws from the belief at that row; up to `most` for each observation are forked as well, with
    no more futures than a row, since it is the hidden states that differ. `digits` and `campaign` are those of
    `bank.groups`; the rest is as for `returns_to_go`. `beliefs` of the result says how many states were averaged.
    """
    key = jax.random.key(0) if key is None else key
    rows = len(bank.params_index)
    alike = groups(dims, params, concatenate([bank, reference]), campaign=campaign, digits=digits)
    wanted, used, extra = set(alike.group[:rows].tolist()), Counter[int](), []
    for i, group in enumerate(alike.group[rows:].tolist()):
        if group in wanted and used[group] < most:
            used[group] += 1
            extra.append(i)
    play = partial(returns_to_go, dims, params, policy=policy, parameters=parameters, chunk=chunk, devices=devices)
    parts = [play(bank, key=key, futures=futures)]
    if extra:
        fewer = min(reference_futures, futures)
        parts.append(play(take(reference, extra), key=jax.random.fold_in(key, 1), futures=fewer))
    chosen = np.concatenate([np.arange(rows), rows + np.asarray(extra, np.int64)])
    pooled = pool_beliefs(
        jax.tree.map(lambda *x: np.concatenate(x), *parts), Groups(alike.group[chosen], alike.slot[chosen])
    )
    return jax.tree.map(lambda x: x[:rows], pooled)

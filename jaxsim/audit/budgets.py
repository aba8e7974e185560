"""How hard the audit searches."""

from typing import NamedTuple


class Budget(NamedTuple):
    """How hard to search. Ticks count from 0; episodes are per policy."""

    base: str  # the budget whose search comes first, and whose finds take part; "" for none
    ticks: tuple[int, ...]  # at which a single action or a pair may act, ascending
    pairs: int  # most plans of two actions: as many leading ticks as make no more
    beam: int  # plans that grow, for each criterion
    depth: int  # times that they grow, from what the base has grown
    moves: int  # single actions that they grow by, the best for each criterion
    climb: int  # steps of the learned blind adversary, from each of its starts
    prefix: int  # most blind actions before a farming loop
    family: int  # members of the evidence family, a power of two
    screen: int  # episodes that every single action and every grown plan plays; of other kinds, rollouts.BLOCK
    select: int  # episodes that the finalists of a race play
    kept: int  # finalists of a race, for each criterion
    report: int  # held-out episodes of the verdict
    configs: int  # reward configurations re-scored, a power of two


POOL_TICKS = (0, 1, 2, 4, 8, 16, 30)
TINY_TICKS = (0, 2, 4, 8, 16, 30)
SMALL_TICKS = (*range(9), 10, 12, 14, 16, 20, 24, 30)
FULL_TICKS = (*range(25), 27, 30, 35, 40, 50)

BUDGETS = {
    "pool": Budget(
        "", POOL_TICKS, pairs=0, beam=2, depth=4, moves=24, climb=48, prefix=0, family=64,
        screen=64, select=512, kept=8, report=512, configs=64,
    ),
    "tiny": Budget(
        "", TINY_TICKS, pairs=0, beam=2, depth=3, moves=12, climb=0, prefix=1, family=128,
        screen=64, select=512, kept=12, report=1024, configs=256,
    ),
    "small": Budget(
        "tiny", SMALL_TICKS, pairs=2**14, beam=4, depth=2, moves=24, climb=48, prefix=3, family=512,
        screen=64, select=1024, kept=24, report=2048, configs=4096,
    ),
    "full": Budget(
        "small", FULL_TICKS, pairs=2**15, beam=6, depth=2, moves=48, climb=96, prefix=5, family=4096,
        screen=64, select=2048, kept=32, report=8192, configs=65536,
    ),
}  # fmt: skip


def lineage(budget: Budget) -> list[Budget]:
    """The budget with those whose search comes before its own, the smallest first."""
    return [*(lineage(BUDGETS[budget.base]) if budget.base else []), budget]

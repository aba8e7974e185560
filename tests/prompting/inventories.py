"""Inventories of built-in and generated networks."""

import time
from collections.abc import Callable
from functools import cache

import numpy as np

import prompting
import scenarios
from grpo.speed.prompting_speed import BUILT_IN, DIMS
from jaxsim.compile import dims_of
from prompting import Inventory
from scenarios.generate import generate


@cache
def scenario_of(name: str) -> scenarios.Scenario:
    """A built-in scenario, or a generated one: 'SEED/ENTITIES'."""
    seed, _, entities = name.partition("/")
    return generate(int(seed), int(entities)) if entities else scenarios.load(name)


@cache
def inventory_of(name: str, padded: bool = False, restore: bool = False) -> Inventory:
    dims = DIMS if padded else dims_of([scenario_of(name)])
    return prompting.inventory(scenario_of(name), dims._replace(restore=restore))


SMALL = "supply_chain_token_drift"
ANY_SIZE = [*BUILT_IN, "0/10", "1/20", "2/60", "3/300"]


def seconds_of(work: Callable[[], object], repeats: int = 5) -> float:
    """The least time on the core that a call takes; a fast one is called often enough to be timed."""
    often = 1
    while True:
        before = time.process_time()
        for _ in range(often):
            work()
        if time.process_time() - before > 0.002:
            break
        often *= 4
    times = []
    for _ in range(repeats):
        before = time.process_time()
        for _ in range(often):
            work()
        times.append((time.process_time() - before) / often)
    return min(times)


def growth(make: Callable[[int], Callable[[], object]], size: int, limit: float) -> float:
    """How much longer the work of 8 times the size takes; the least of some tries, the last one if below `limit`."""
    least = np.inf
    for _ in range(4):
        least = min(least, seconds_of(make(8 * size)) / seconds_of(make(size)))
        if least < limit:
            break
    return least

"""How many prompts a second are written, and how many completions a second are read.

    jaxsim-soc prompting-speed

In one process, on one core. Observations are those of random and of heuristic play; playing them is not timed. The
median of the repeats, of the time that the process itself had on the core, so that neighbours count little.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax
import numpy as np
from chex import Array

import jaxsim
import prompting
import scenarios
from jaxsim import env
from jaxsim.compile import dims_of
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.policies import Policy
from jaxsim.rules import restores
from jaxsim.types import Dims, Observation, Params, State
from jaxsim_soc import cli

BUILT_IN = [*scenarios.names("published"), *scenarios.names("hardened")]
DIMS = dims_of([scenarios.load(name) for name in BUILT_IN])  # of all: one program plays any of them
TICKS = max(scenarios.load(name).horizon for name in BUILT_IN)
CHATTER = "Alerts point to one host, so the best next step is:\n```json\n{}\n```\nIt is the most likely target."


@partial(jax.jit, static_argnames=("dims", "policy", "ticks"))
def _play(dims: Dims, policy: Policy, ticks: int, parameters: Any, keys: Array, params: Params) -> Observation:
    def episode(key: Array) -> Observation:
        def tick(carry: tuple[State, Any], _: None) -> tuple[tuple[State, Any], Observation]:
            state, memory = carry
            seen, noise = env.observe(dims, state, params), tick_noise(key, state.tick + 1)
            action, memory = policy.act(dims, parameters, memory, seen, noise[-2:])
            return (env.transition(dims, state, action, noise, params)[0], memory), seen

        _, seen = jax.lax.scan(tick, (start(dims, key, params), policy.init(dims, parameters)), length=ticks)
        return seen

    return jax.vmap(episode)(keys)


def played(name: str, policy: str, episodes: int, rules: str = "hardened", seed: int = 0) -> Observation:
    """What a baseline policy sees in episodes of a built-in scenario, NumPy arrays (episodes x TICKS, ...) of DIMS.

    With RESTORE where the rules have it.
    """
    dims = DIMS._replace(restore=restores(rules))
    params = env.make_params(scenarios.load(name), dims, rules, "operational", "any")
    act, parameters = jaxsim.BASELINES[policy]
    seen = _play(dims, act, TICKS, parameters, episode_keys(jax.random.key(seed), episodes), params)
    flat: Observation = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), seen)
    return flat


def completions(inventory: prompting.Inventory) -> list[str]:
    """A mix as models write them: one in three valid, one among chatter, one broken."""
    valid = prompting.answers(inventory)
    broken = [valid[0][:-3], "I would wait and see.", *(text.replace("A", "O") for text in valid[2:])]
    return [*valid, *(CHATTER.format(text) for text in valid), *broken]


def rate(work: Callable[[], int], repeats: int) -> float:
    """Median of how much of its work a function does in a second; it returns how much it did."""
    work()
    rates = []
    for _ in range(repeats):
        before = time.process_time()
        done = work()
        rates.append(done / (time.process_time() - before))
    return median(rates)


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument(
        "--episodes", type=cli.integer(1, 10_000), default=32, metavar="N", help="of each scenario (default: 32)"
    )
    p.add_argument("--repeats", type=cli.integer(1, 1000), default=7, metavar="N", help="timed runs (default: 7)")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Time writing and reading, print a line for each."""
    args = parser().parse_args(argv)
    for group in ("published", "hardened"):
        inventories = [prompting.inventory(scenarios.load(name), DIMS) for name in scenarios.names(group)]
        for policy in ("random", "heuristic"):
            batches = [played(name, policy, args.episodes) for name in scenarios.names(group)]
            for layout in prompting.LAYOUTS:

                def write(
                    batches: list[Observation] = batches,
                    inventories: list[prompting.Inventory] = inventories,
                    layout: str = layout,
                ) -> int:
                    pairs = zip(batches, inventories, strict=True)
                    return sum(len(prompting.render(batch, inventory, layout)) for batch, inventory in pairs)

                print(f"{group}, {policy} play, {layout}: {rate(write, args.repeats):,.0f} prompts/s")
        inventory = inventories[0]
        texts = completions(inventory) * 200

        def read(texts: list[str] = texts, inventory: prompting.Inventory = inventory) -> int:
            for text in texts:
                prompting.parse(text, inventory)
            return len(texts)

        print(f"{group}: {rate(read, args.repeats):,.0f} completions/s")

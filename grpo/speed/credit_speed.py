"""How long the credit of training rows takes: futures for every legal action of every row of a bank of states.

    jaxsim-soc credit-speed --states 1500 --futures 32 --scenario published

A future is one action in one state, played to the end by the evidence policy. The states are those of the heuristic's
play, at ticks spread evenly over its episodes. Compiling is timed apart. --profile also times a policy that only waits.
"""

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from grpo.rows import bank as banks
from grpo.rows.credit import informative, legal_actions, returns_to_go
from jaxsim import BASELINES, Env, Params, options
from jaxsim import env as env_module
from jaxsim.compile import dims_of
from jaxsim.rules import restores
from jaxsim.throughput import use_devices
from jaxsim_soc import cli


def rows(env: Env, params: Params, states: int, seed: int) -> banks.Bank:
    """As many states from the heuristic's play, campaigns in turn."""
    each = -(-states // len(params.personality_weights))
    bank = banks.collect_heuristic(env, params, *BASELINES["heuristic"], jax.random.key(seed), each)
    in_turn = np.argsort(bank.episode, kind="stable")
    return banks.take(bank, in_turn[:states])


def measure(env: Env, params: Params, bank: banks.Bank, policy: str, args: Any) -> dict[str, Any]:
    """Time one policy: the first call of a chunk, which compiles, and then the whole bank, `repeats` times."""
    work = partial(returns_to_go, env.dims, params, key=jax.random.key(args.seed), futures=args.futures)
    work = partial(work, policy=BASELINES[policy][0], parameters=BASELINES[policy][1], chunk=args.chunk)
    # The row with most actions is among them, so that the program is the one of the whole bank.
    legal = legal_actions(env.dims, params, bank)
    before = time.perf_counter()
    work(banks.take(bank, [int(legal.sum(axis=1).argmax())]))
    first = time.perf_counter() - before
    walls, busy = [], time.process_time()
    for _ in range(args.repeats):
        before = time.perf_counter()
        credit = work(bank)
        walls.append(time.perf_counter() - before)
    busy = time.process_time() - busy
    left = np.asarray(params.scenario.horizon)[bank.params_index] - bank.state.tick
    futures, wall = int(legal.sum()) * args.futures, float(np.median(walls))
    return {
        "policy": policy,
        "wall_s": wall,
        "min_wall_s": min(walls),
        "max_wall_s": max(walls),
        "cpu_s": busy / args.repeats,  # of all cores; neighbours stretch the wall time more than this
        "first_call_s": first,
        "futures_per_s": futures / wall,
        "most_steps_per_s": float((legal.sum(axis=1) * left).sum()) * args.futures / wall,
        "states": len(left),
        "actions_per_state": futures / args.futures / len(left),
        "futures": args.futures,
        "mean_ticks_left": float(left.mean()),
        "mean_se": float(np.nanmean(credit.se)),
        "informative": float(informative(credit).mean()),
        "devices": len(jax.devices()),
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
    }


def parser() -> cli.Parser:
    """The options."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = partial(cli.integer, 1)
    p = cli.parser(__doc__)
    options.add_scenarios(p, "the three training campaigns of published")
    options.add_rules(p)
    options.add_reward(p)
    p.add_argument("--states", type=count(100_000), default=1500, metavar="N", help="rows (default: 1500)")
    p.add_argument("--futures", type=cli.integer(2, 4096), default=32, metavar="N", help="of each action (default: 32)")
    p.add_argument("--chunk", type=count(100_000), default=64, metavar="N", help="rows of one call (default: 64)")
    p.add_argument("--repeats", type=count(100), default=1, metavar="N", help="timed runs (default: 1)")
    p.add_argument(
        "--devices", type=count(256), default=cores, metavar="N", help=f"CPU devices, one a core (default: {cores})"
    )
    p.add_argument("--profile", action="store_true", help="time a continuation that only waits as well")
    options.add_seed(p)
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Measure; one JSON line for each policy."""
    args = parser().parse_args(argv)
    use_devices(args.devices)
    chosen = options.chosen(args.scenario or [[s for s in options.scenario("published") if not s.held_out]])
    dims = dims_of(chosen, restores(args.rules))
    params = banks.stack([env_module.make_params(s, dims, args.rules, args.reward, "any") for s in chosen])
    env = Env(dims)
    bank = rows(env, params, args.states, args.seed)
    for policy in ("evidence", "monitor") if args.profile else ("evidence",):
        print(json.dumps(measure(env, params, bank, policy, args)), flush=True)

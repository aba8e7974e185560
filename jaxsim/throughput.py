"""How many steps a second the simulator makes, beside the scalar twin on the same machine in the same minute.

    jaxsim-soc throughput --policy random heuristic --batch 4096 --json speed.jsonl
    jaxsim-soc throughput --curve entities --plot entities.png

A step is one tick of one live episode: an episode that ends is replaced by the next in the same tick. Nothing is left
for the compiler to drop: every leaf of every observation is added into a checksum, every reward into a sum.
Medians of repeats that alternate between the simulator and the twin, since neighbours on a machine come and go.
"""

import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import scenarios
from jaxsim import BASELINES, SIMULATOR_VERSION, Dims, Policy, noise, options, twin_policies, twin_reward, twin_rules
from jaxsim import env as env_module
from jaxsim.compile import dims_of
from jaxsim.noise import Noise
from jaxsim.reward import channels, total
from jaxsim.types import RUNNING, Params, State
from jaxsim_soc import cli

INCLUDES = "noise, policy, transition, observation, reward, auto-reset"
TWIN_POLICIES = {
    "random": twin_policies.random_policy,
    "monitor": twin_policies.monitor,
    "heuristic": twin_policies.heuristic,
}
CURVES = {
    "batch": (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
    "entities": (10, 30, 100, 300, 1000, 3000, 10000),
    "stages": (5, 10, 20, 50, 100, 200),
    "horizon": (70, 140, 280, 420, 560, 700),
}
CURVE_ROOM = 4_000_000  # lanes x entities at a time, so that a large scenario fits into memory
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")

Line = dict[str, Any]


# --- what is measured -----------------------------------------------------------------------------------------------


class Lane(NamedTuple):
    """One of the episodes in progress; a batch adds a leading axis.

    What a later tick reads at many places is in the lane: what is not, the compiler computes again at every use.
    """

    episode: Array  # () int32, its number
    block: Array  # (16,) float32, the next tick's noise
    state: State  # replaced at the start of a tick when it is over
    memory: Any  # the policy's
    drawn: env_module.Drawn  # of the next episode
    points: Array  # () float32, all rewards so far
    seen: Array  # () int32, checksum of all observations so far, modulo 2**32


def draw_episode(dims: Dims, params: Params, root: Array, episode: Array) -> env_module.Drawn:
    """What the reset of an episode draws, as that of the same episode in `jaxsim.rollout`."""
    return env_module.draw(dims, noise.fold_in(noise.fold_in(root, episode), jnp.int32(0)), params)


def draw_tick(root: Array, episode: Array, tick: Array) -> Array:
    """The noise of a tick of an episode, (16,), as that in `jaxsim.rollout`."""
    return noise.draw(noise.fold_in(noise.fold_in(root, episode), tick))


def begin(dims: Dims, policy: Policy, batch: int, parameters: Any, params: Params, root: Array, episode: Array) -> Lane:
    """A lane at tick 0 of an episode."""
    state = env_module.begin(dims, draw_episode(dims, params, root, episode), params)
    block, memory = draw_tick(root, episode, jnp.int32(1)), policy.init(dims, parameters)
    drawn = draw_episode(dims, params, root, episode + batch)
    return Lane(episode, block, state, memory, drawn, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def checksum(tree: Any) -> Array:
    """The sum of all words of a pytree, () int32, so that each has to be computed."""
    leaves = jax.tree.leaves(tree)
    words = [x if x.dtype != jnp.float32 else jax.lax.bitcast_convert_type(x, jnp.int32) for x in leaves]
    return sum((jnp.sum(x, dtype=jnp.int32) for x in words), start=jnp.zeros((), jnp.int32))


def tick(dims: Dims, policy: Policy, batch: int, parameters: Any, params: Params, root: Array, lane: Lane) -> Lane:
    """The next episode if the last one is over; observe, act, transition, reward."""
    over = lane.state.end != RUNNING
    fresh = env_module.begin(dims, lane.drawn, params), policy.init(dims, parameters)
    state, memory = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, (lane.state, lane.memory))
    episode = lane.episode + jnp.where(over, batch, 0)

    obs = env_module.observe(dims, state, params)
    action, memory = policy.act(dims, parameters, memory, obs, lane.block[Noise.POLICY_VERB :])
    state, signals = env_module.transition(dims, state, action, lane.block, params)
    points = lane.points + total(channels(signals, params.reward), params.reward)

    drawn = draw_episode(dims, params, root, episode + batch)
    over = state.end != RUNNING
    block = draw_tick(root, episode + jnp.where(over, batch, 0), jnp.where(over, 0, state.tick) + 1)
    return Lane(episode, block, state, memory, drawn, points, lane.seen + checksum(obs))


@partial(jax.jit, static_argnames=("dims", "policy", "ticks"))
def steps(
    dims: Dims, policy: Policy, ticks: int, parameters: Any, params: Params, root: Array, episodes: Array
) -> tuple[Array, Array, Array]:
    """Play `ticks` ticks in a lane for each of `episodes`, (B,); points, checksum and episode number, each (B,)."""
    lanes = jax.vmap(partial(begin, dims, policy, len(episodes), parameters, params, root))(episodes)
    one = jax.vmap(partial(tick, dims, policy, len(episodes), parameters, params, root))
    lanes, _ = jax.lax.scan(lambda carry, _: (one(carry), None), lanes, length=ticks)
    return lanes.points, lanes.seen, lanes.episode + jnp.where(lanes.state.end != RUNNING, len(episodes), 0)


def over_devices(batch: int, devices: int) -> tuple[Array, int]:
    """Episode numbers 0 .. batch - 1, spread evenly over as many of the devices as divide them."""
    used = math.gcd(batch, min(devices, len(jax.devices())))
    mesh = Mesh(np.asarray(jax.devices()[:used]), ("lanes",))
    return jax.device_put(np.arange(batch, dtype=np.int32), NamedSharding(mesh, PartitionSpec("lanes"))), used


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def scalar_rate(scenario: scenarios.Scenario, policy: twin_policies.Policy, least: int, rng: random.Random) -> float:
    """Steps a second of the scalar twin over `least` steps or some more, attackers drawn uniformly."""
    weights, count = twin_reward.REWARDS["evidence"], 0
    before = time.perf_counter()
    while count < least:
        who = rng.choice(list(twin_rules.PERSONALITIES))
        count += int(twin_policies.episode(scenario, who, policy, weights, rng)["length"])
    return count / (time.perf_counter() - before)


def measure(scenario: scenarios.Scenario, policy_name: str, batch: int, args: Any) -> Line:
    """Compile, then time `repeats` runs of simulator and twin in turn."""
    dims = dims_of([scenario])
    params = env_module.make_params(scenario, dims, "classic", "evidence", "any")
    policy, parameters = BASELINES[policy_name]
    episodes, used = over_devices(batch, args.devices)
    given = (parameters, params, jax.random.key(args.seed), episodes)
    before = time.perf_counter()
    program = steps.lower(dims, policy, args.ticks, *given).compile()
    compile_s = time.perf_counter() - before
    jax.block_until_ready(program(*given))  # the first run pays for memory

    rng, scalar_policy = random.Random(args.seed), TWIN_POLICIES.get(policy_name)
    rates, scalar = [], []
    for _ in range(args.repeats):
        rates.append(batch * args.ticks / seconds(lambda: jax.block_until_ready(program(*given))))
        if scalar_policy:
            scalar.append(scalar_rate(scenario, scalar_policy, args.scalar_steps, rng))
    middle = statistics.median(rates)
    return {
        "policy": policy_name,
        "batch": batch,
        "steps_per_s": middle,
        "min_steps_per_s": min(rates),
        "max_steps_per_s": max(rates),
        "compile_s": compile_s,
        "scalar_steps_per_s": statistics.median(scalar) if scalar else None,
        "ratio_to_scalar": middle / statistics.median(scalar) if scalar else None,
        "load": os.getloadavg()[0],
        "includes": INCLUDES,
        "scenario": scenario.id,
        "assets": dims.assets,
        "identities": dims.identities,
        "stages": dims.stages,
        "horizon": scenario.horizon,
        "ticks": args.ticks,
        "repeats": args.repeats,
        "seed": args.seed,
        "device": jax.devices()[0].device_kind,
        "devices": used,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.__version__,
        "simulator_version": SIMULATOR_VERSION,
    }


# --- cost curves ----------------------------------------------------------------------------------------------------


def synthetic(entities: int = 10, stages: int = 5, horizon: int = 70) -> scenarios.Scenario:
    """A chain of stages through an enterprise of a given size; dwell times grow with the horizon."""
    identities = entities // 2
    assets = entities - identities
    slow = horizon // 70
    asset, identity = scenarios.Asset, scenarios.Identity
    return scenarios.Scenario(
        format=1,
        id=f"chain-{entities}-{stages}-{horizon}",
        title=f"{stages} stages, {entities} entities, {horizon} ticks",
        horizon=horizon,
        noise_rate=0.18,
        assets=tuple(asset(id=f"a{i}", kind="service", criticality=0.5, segment="s") for i in range(assets)),
        identities=tuple(identity(id=f"i{i}", role="user", privilege=0.5) for i in range(identities)),
        stages=tuple(
            scenarios.Stage(
                id=f"s{k}",
                name=f"Stage {k}",
                tactic="TA0010" if k == stages - 1 else "TA0008",
                technique="T1041" if k == stages - 1 else "T1021",
                prerequisites=(f"s{k - 1}",) if k else (),
                asset=f"a{k % assets}",
                identity=f"i{k % identities}",
                dwell=(3 * slow, 8 * slow),
                success=0.85,
                detection=0.5,
                lag=(1, 6),
                compromises_asset=True,
                exfil=k == stages - 1,
            )
            for k in range(stages)
        ),
    )


def cases(args: Any) -> list[tuple[scenarios.Scenario, str, int]]:
    """Scenario, policy and batch of each measurement."""
    if args.curve is None:
        return [(args.scenario, name, batch) for name in args.policy for batch in args.batch]
    if args.curve == "batch":
        return [(args.scenario, name, batch) for name in args.policy for batch in CURVES["batch"]]
    sizes = [(synthetic(**{args.curve: size}), size) for size in CURVES[args.curve]]
    return [
        (scenario, name, min(batch, CURVE_ROOM // size) if args.curve == "entities" else batch)
        for name in args.policy
        for batch in args.batch
        for scenario, size in sizes
    ]


def size_of(line: Line, curve: str) -> int:
    """What a curve varies, in one of its lines."""
    return int(line["assets"] + line["identities"] if curve == "entities" else line[curve])


def nanoseconds(line: Line) -> float:
    """Cost of a step."""
    return 1e9 / float(line["steps_per_s"])


def plot(path: Path, lines: Sequence[Line], curve: str) -> None:
    """Draw cost against size, both axes logarithmic, a line for each policy; bars from least to most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, name in enumerate(dict.fromkeys(line["policy"] for line in lines)):
        mine = sorted((x for x in lines if x["policy"] == name), key=lambda x: size_of(x, curve))
        cost = np.asarray([nanoseconds(x) for x in mine])
        least = 1e9 / np.asarray([x["max_steps_per_s"] for x in mine])
        most = 1e9 / np.asarray([x["min_steps_per_s"] for x in mine])
        axes.errorbar(
            [size_of(x, curve) for x in mine],
            cost,
            yerr=[cost - least, most - cost],
            marker="osD^"[i],
            color=COLOURS[i],
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel({"horizon": "horizon, ticks", "batch": "batch, episodes"}.get(curve, curve))
    axes.set_ylabel("ns per step")
    axes.set_title(
        f"cost of a step, up to {max(x['devices'] for x in lines)} × {lines[0]['device']}", loc="left", fontsize=10
    )
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    cli.write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower()))


# --- command line ---------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = partial(cli.integer, 1)
    p = cli.parser(__doc__)
    p.add_argument(
        "--policy",
        type=cli.one_of(BASELINES),
        nargs="+",
        metavar="NAME",
        default=["random"],
        help=f"any of {', '.join(BASELINES)} (default: random)",
    )
    p.add_argument(
        "--batch",
        type=count(2**20),
        nargs="+",
        metavar="N",
        help="episodes in lockstep (default: 4096)",
    )
    p.add_argument("--scenario", type=options.scenario, metavar="NAME|FILE", help="default: supply_chain_token_drift")
    p.add_argument("--ticks", type=count(100_000), default=256, metavar="N", help="of a run (default: 256)")
    p.add_argument("--repeats", type=count(1000), default=5, metavar="N", help="timed runs (default: 5)")
    p.add_argument(
        "--scalar-steps",
        type=count(10_000_000),
        default=5000,
        metavar="N",
        help="of the twin in each repeat (default: 5000)",
    )
    p.add_argument(
        "--devices",
        type=count(256),
        default=cores,
        metavar="N",
        help=f"devices to spread the batch over; of a CPU, one a core is fastest (default: {cores})",
    )
    options.add_seed(p)
    p.add_argument("--curve", type=cli.one_of(CURVES), metavar="WHAT", help=f"cost against {', '.join(CURVES)}")
    p.add_argument("--json", type=cli.output_path, metavar="FILE", help="write a JSON line for each measurement here")
    p.add_argument("--plot", type=cli.plot_path, metavar="FILE.png", help="draw the curve here (or .svg, .pdf)")
    return p


def parse_args(argv: Sequence[str] | None) -> Any:
    return checked(parser().parse_args(argv))


def checked(args: Any) -> Any:
    """The options put together. Fails for options that do not go together."""
    cli.differ(json=args.json, plot=args.plot)
    if args.plot and not args.curve:
        cli.fail("--plot draws a curve; add --curve batch, for example, or leave --plot out")
    if args.curve == "batch" and args.batch:
        cli.fail("--batch is what --curve batch varies; leave one of the two out")
    if args.curve not in (None, "batch") and args.scenario:
        cli.fail(f"--scenario: --curve {args.curve} makes its own scenarios; leave one of the two out")
    named = args.scenario or options.scenario("supply_chain_token_drift")
    if len(named) != 1:
        cli.fail("--scenario: 'all' is not possible here; name one scenario")
    args.scenario = named[0]
    args.policy = list(dict.fromkeys(args.policy))
    args.batch = list(dict.fromkeys(args.batch or [4096]))
    return args


def use_devices(count: int) -> None:
    """Ask for that many CPU devices; in vain when something has used JAX before."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        print(f"--devices: JAX is running already, with {len(jax.devices())}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure; one JSON line for each measurement, with --curve the cost of a step as well."""
    args = parse_args(argv)
    if args.plot:
        cli.need("matplotlib", "--plot")
    use_devices(args.devices)
    lines = []
    for case in cases(args):
        line = measure(*case, args)
        lines.append(line)
        if args.json is None:
            print(json.dumps(line), flush=True)
        if args.curve:
            note = f"{args.curve} {size_of(line, args.curve):>6}  {nanoseconds(line):10.1f} ns per step"
            print(f"{line['policy']:<10}{note}", file=sys.stderr, flush=True)
    if args.json:
        cli.write_text(args.json, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    if args.plot:
        plot(args.plot, lines, args.curve)

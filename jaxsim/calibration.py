"""Is a scenario's stream of alerts like that of a real network? Its figures beside those of labelled alerts.

    jaxsim-soc calibrate alerts.csv --scenario mine.yaml
    jaxsim-soc calibrate monday.csv tuesday.csv --kind rule --label verdict --harmless benign "false positive"

A file is a CSV with a header and a row for each alert: time (seconds since 1970 or ISO 8601), host, name and label. A
scenario is played in all of its queues, and nobody acts. It shows every alert once; in a file, alerts of one name and
host that follow on each other are counted as one group. "meanwhile" is after the attack's first alert, up to its last.
"""

import argparse
import csv
import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

import scenarios
from jaxsim import env, options, telemetry
from jaxsim.compile import dims_of
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.rules import restores
from jaxsim.types import RUNNING, Dims, Params, State
from jaxsim_soc import cli
from scenarios.checks import OWN_QUEUE
from scenarios.labelled_alerts import (
    COLUMNS,
    HARMLESS,
    MINUTES_A_DAY,
    Figures,
    Named,
    Stream,
    by_host_and_day,
    figures,
    grouped,
    read_alerts,
    together,
)
from scenarios.model import TICK_MINUTES
from scenarios.read import printable

AT_ONCE = 1024  # episodes
DEFAULT_GAP = 10.0  # minutes
MAX_GAP = 7 * MINUTES_A_DAY
TABLE = ("file", "host", "day", "attack_alerts", "other_alerts", "attack_groups", "other_groups")


# --- a scenario's alerts ----------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("dims", "impl", "ticks"))
def _played(dims: Dims, params: Params, keys: Array, impl: str, ticks: int) -> Any:
    """Of each tick of each episode, (E, T, ...): live, (ticks at which they are seen or 0, codes) of its alerts, 1 + 2.

    The first is background or benign activity, the others are of the stage that began.
    """

    def one(key: Array) -> Any:
        def tick(state: State, _: None) -> Any:
            block, live = tick_noise(key, state.tick + 1), state.end == RUNNING
            fires, code = telemetry.background(dims, state, live, block, params)[:2]
            after = env.transition(dims, state, jnp.int32(0), block, params)[0]  # MONITOR
            row = after.tick % dims.max_lag
            due, its_code = after.pending.due[row], after.pending.code[row]
            due = jnp.where(live & (due > after.tick), due, 0)  # or they are of earlier ticks
            seen = jnp.append(jnp.where(fires, after.tick, 0), due)
            return after, (live, seen, jnp.stack([code, its_code, its_code]))

        return jax.lax.scan(tick, start(dims, key, params), None, ticks)[1]

    return jax.vmap(one)(jax.random.wrap_key_data(keys, impl=impl))


def stream(dims: Dims, params: Params, keys: Array) -> Stream:
    """The alerts that a defender who only watches sees in the episodes of `keys`, (E,); each a period."""
    bare = params._replace(reward=None)  # type: ignore[arg-type]
    data, impl = np.asarray(jax.random.key_data(keys)), str(jax.random.key_impl(keys))
    whole = np.resize(data, (-(-len(data) // AT_ONCE) * AT_ONCE, *data.shape[1:])) if len(data) > AT_ONCE else data
    parts = []
    for first in range(0, len(data), AT_ONCE):
        played = _played(dims, bare, whole[first : first + AT_ONCE], impl, int(params.scenario.horizon))
        live, seen, code = (np.asarray(x)[: len(data) - first] for x in played)
        ticks = live.sum(1)
        episode, tick, which = np.nonzero((seen > 0) & (seen <= ticks[:, None, None]))
        at = (episode, tick, which)
        signal, asset, _ = telemetry.unpack(dims, code[at])
        parts.append(
            Stream(
                period=episode,
                minute=seen[at] * float(TICK_MINUTES),
                host=np.asarray(asset, np.int64),
                kind=np.asarray(signal, np.int64),
                attack=which > 0,
                minutes=ticks * float(TICK_MINUTES),
                hosts=np.full(len(ticks), int(params.scenario.asset_count)),
            )
        )
    return together(parts)


def queues(scenario: scenarios.Scenario) -> list[scenarios.Scenario]:
    """The scenario in its own queue and in each of its others."""
    return [scenarios.in_queue(scenario, name) for name in (OWN_QUEUE, *(q.id for q in scenario.queues))]


# --- for people -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[tuple[str, Figures]]) -> str:
    """The figures as a Markdown table, a stream a row."""
    head = ["stream", "host-days", "alerts", "of an attack", "meanwhile", "others a tick", "others a host a day"]
    head += ["of an attack a host a day", "minutes between two", "between two of an attack"]
    lines = [head, ["---"] * len(head)]
    for name, f in rows:
        shares = (_number(100 * f.of_attack, 1, " %"), _number(100 * f.of_attack_meanwhile, 1, " %"))
        rates = (_number(f.others, 2), _number(f.others_host_day, 2), _number(f.attack_host_day, 2))
        gaps = (_spread(f.gaps), _spread(f.attack_gaps))
        lines.append([name, _number(f.host_days, 0), f"{f.alerts:,}", *shares, *rates, *gaps])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float, digits: int, unit: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}{unit}"


def _spread(gaps: tuple[float, float, float]) -> str:
    low, middle, high = (_number(x, 1 if x < 10 else 0) for x in gaps)
    return "–" if math.isnan(gaps[1]) else f"{middle} ({low} to {high})"


def advice(scenario: scenarios.Scenario, own: Figures, data: Figures) -> str:
    """Which rate of other alerts mixes a scenario's alerts as the data are mixed while an attack runs, in a line."""
    share = data.of_attack_meanwhile
    if not share > 0:
        return f"{scenario.id}: no attack in the data has two groups of alerts, to say how they are mixed while it runs"
    if not own.attack_meanwhile > 0:
        return f"{scenario.id}: its attack is hardly ever seen twice; raise `detection` of its stages"
    rate = own.attack_meanwhile * (1 - share) / share
    now = math.fsum([scenario.noise_rate, *(b.rate for b in scenario.benign)])
    text = (
        f"{scenario.id}: while an attack runs, {share:.1%} of the data's groups are of it; noise_rate and the rates of "
    )
    if rate > 1:
        return f"{text}benign would have to be {rate:.2g} a tick in all, and 1 is the most (now {now:.3g})"
    return f"{text}benign give that with {rate:.2g} a tick in all (now {now:.3g}), as would a queue of that rate"


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("files", nargs="+", metavar="FILE", help="labelled alerts of one network, as CSV")
    options.add_scenarios(p)
    for what, column in COLUMNS.items():
        meaning = {"kind": "what alerts of one cause have in common", "label": "whether it is of an attack"}
        p.add_argument(
            f"--{what}", default=column, metavar="COLUMN",
            help=f"that of {meaning.get(what, f'the {what}')} (default: {column})",
        )  # fmt: skip
    p.add_argument(
        "--harmless", nargs="+", default=HARMLESS, metavar="LABEL",
        help=f"labels of what is no attack, in any case (default: nothing, {', '.join(HARMLESS[1:])})",
    )  # fmt: skip
    p.add_argument(
        "--gap", type=_gap, default=DEFAULT_GAP, metavar="MINUTES",
        help=f"the longest between two alerts of one group (default: {DEFAULT_GAP:g})",
    )  # fmt: skip
    options.add_rules(p)
    options.add_personality(p)
    options.add_episodes(p)
    options.add_seed(p)
    p.add_argument("--table", type=cli.output_path, metavar="FILE.csv", help="write the counts by host and day here")
    return p


def _gap(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= MAX_GAP:
        return value
    raise argparse.ArgumentTypeError(f"{text!r:.60} is not possible; give a number of minutes from 0 to {MAX_GAP}")


def data_rows(named: Sequence[tuple[str, Named]], gap: float) -> list[tuple[str, Figures]]:
    """The figures of each file, its alerts in groups, and of all; fails when they can be compared with nothing."""
    found = [(printable(Path(name).name), grouped(one.stream, gap)) for name, one in named]
    if len(found) > 1:
        found.append(("all files", together([s for _, s in found])))
    attack = found[-1][1].attack
    if attack.all() or not attack.any():
        every = "every alert is" if attack.all() else "no alert is"
        cli.fail(f"{every} of an attack by its label; name the labels of what is no attack by --harmless")
    return [(name, figures(s)) for name, s in found]


def write_table(named: Sequence[tuple[str, Named]], gap: float) -> str:
    """The counts by file, host and day, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE)
    for name, one in named:
        writer.writerows((name, *row) for row in by_host_and_day(one, gap))
    return text.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the files, play the scenarios, print both as a table."""
    args = parser().parse_args(argv)
    chosen = options.chosen(args.scenario)
    columns = {what: getattr(args, what) for what in COLUMNS}
    try:
        named = [(file, read_alerts(file, columns, tuple(args.harmless))) for file in dict.fromkeys(args.files)]
    except ValueError as error:
        cli.fail(str(error))
    rows = data_rows(named, args.gap)
    data = rows[-1][1]
    dims, lines = dims_of(chosen, restores(args.rules)), []
    keys = episode_keys(jax.random.key(args.seed), args.episodes)
    for scenario in chosen:
        for queue in queues(scenario):
            params = env.make_params(queue, dims, args.rules, "operational", args.personality)
            own = figures(stream(dims, params, keys))
            rows.append((queue.id, own))
            lines += [advice(queue, own, data)] if queue is scenario else []
    print(table(rows))
    print("", *lines, sep="\n")
    labels = dict.fromkeys(label for _, one in named for label in one.labels)
    print(f"labels of an attack: {', '.join(map(repr, list(labels)[:20]))}{', …' if len(labels) > 20 else ''}")
    if args.table:
        cli.write_text(args.table, write_table(named, args.gap))

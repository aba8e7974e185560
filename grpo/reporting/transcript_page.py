"""One episode as a web page: what the attacker did in truth, what the model was shown, said and was paid.

    jaxsim-soc transcript RECORD.json --out page.html

A record is that of `jaxsim.replays`; it may also hold `texts` (what was said at each tick, null where the model was not
asked), `model`, `layout` and `policy`. The page is one file without scripts or foreign parts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import prompting
import scenarios
from grpo.reporting.escaped import shown
from grpo.reporting.transcript_picture import LEGEND, events, picture
from jaxsim import replays
from jaxsim.actions import INVALID
from jaxsim.audit.witness import tick_rows
from jaxsim.names import action_text, end_name, loss_name
from jaxsim.rules import PERSONALITIES
from jaxsim.types import RUNNING, Channels, Dims
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

OUTCOMES = {None: "no loss", "exfil": "data stolen", "impact": "data or services destroyed"}
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1c1c;--faint:#6a6a6a;--line:#d9d9d9;--box:#f4f4f2;
--attack:#b4460a;--alert:#8a6d00;--mark:#e6b800;--act:#0065a3;--good:#00795a;--bad:#b4460a}
@media(prefers-color-scheme:dark){:root{--paper:#16181a;--ink:#e6e6e6;--faint:#9c9c9c;--line:#3a3d40;--box:#212427;
--attack:#ff9c66;--alert:#f0d060;--mark:#e6b800;--act:#6cbcf0;--good:#4fd0a8;--bad:#ff9c66}}
body{background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:78rem;
padding:0 1rem}
h1{font-size:1.3rem;margin:0 0 .6rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.5rem 1.2rem;margin:0 0 1rem}
dt{color:var(--faint);font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.87rem}
th{background:var(--paper);border-bottom:2px solid var(--line);font-weight:600;text-align:left;vertical-align:bottom;
padding:.3rem .45rem}
td:nth-child(3){min-width:9rem}td:nth-child(4){min-width:11rem}
td{border-bottom:1px solid var(--line);padding:.3rem .45rem;vertical-align:top}
.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th.number{font-size:.72rem;font-weight:400;white-space:normal}
.zero{color:var(--faint)}.attack{color:var(--attack)}.alert{color:var(--alert)}
.bad{color:var(--bad)}.good{color:var(--good)}
.act{color:var(--act);font-weight:600}
pre,.said{font:.8rem/1.4 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;
margin:0}
.said{background:var(--box);border-radius:3px;padding:.15rem .35rem;display:inline-block;max-width:32rem}
details pre{background:var(--box);border-radius:3px;padding:.5rem;max-width:38rem}
summary{color:var(--faint);cursor:pointer;font-size:.78rem}
svg{width:100%;height:auto;margin:0 0 1rem;font:11px system-ui,sans-serif}
svg text{fill:var(--faint)}
"""


# --- text -----------------------------------------------------------------------------------------------------------


def signed(value: float) -> str:
    """A number of points with its sign; a dot for nothing."""
    if abs(value) < 5e-4:
        return '<td class="number zero">·</td>'
    return f'<td class="number {"good" if value > 0 else "bad"}">{value:+.2f}</td>'


def lines(text: str) -> str:
    """What `tick_rows` writes into a cell, with colours."""
    colours = {"alert": "alert", "forensics": "act"}
    each = [] if text == "-" else text.split("\n")
    return "<br>".join(f'<span class="{colours.get(x.split()[0], "attack")}">{shown(x)}</span>' for x in each)


# --- the page -------------------------------------------------------------------------------------------------------


def page(record: dict[str, Any]) -> str:
    """A record of `replays.load_record` as one HTML page. Raises ValueError or ScenarioError as `play_record` does."""
    scenario, env, played = replays.play_record(record)
    layout, texts = record.get("layout", "compact"), record.get("texts")
    texts = texts if isinstance(texts, list) else []
    rows = tick_rows(scenario, env.dims, played)
    inventory = prompting.inventory(scenario, env.dims)
    prompts = prompting.render(jax.tree.map(lambda x: x[: len(rows)], played.observation), inventory, layout)
    found = events(scenario, env.dims, played, len(rows))
    body, total = [], 0.0
    for t, row in enumerate(rows):
        channels = [float(x[t]) for x in played.channels]
        total += float(played.reward[t])
        cells = [
            f'<td class="number">{row["tick"]}</td>',
            f"<td>{_answer(texts[t] if t < len(texts) else None, int(played.action[t]), row['action'], inventory)}"
            f"<details><summary>what was shown</summary><pre>{shown(prompts[t])}</pre></details></td>",
            f"<td>{lines(row['attacker (hidden)'])}</td><td>{lines(row['defender sees'])}</td>",
            *map(signed, channels),
            f'<td class="number">{total:+.2f}</td>',
        ]
        body.append("<tr>" + "".join(cells) + "</tr>")
    heads = "".join(f'<th class="number">{name.replace("_", " ")}</th>' for name in Channels._fields)
    system = shown(prompting.system_prompt(inventory))
    title = f"{scenario.id}, episode {record['episode']}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{shown(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{shown(title)}</h1>",
            _facts(record, scenario, played, len(rows), total),
            picture(played, found, len(rows)),
            f"<p><small>{LEGEND}</small></p>",
            f"<details><summary>system prompt</summary><pre>{system}</pre></details>" if texts else "",
            '<div class="scroll"><table><thead><tr><th>tick</th><th>answer</th><th>attacker (hidden)</th>'
            f'<th>evidence that arrived</th>{heads}<th class="number">running return</th></tr></thead><tbody>',
            *body,
            "</tbody></table></div></body></html>\n",
        ]
    )


def _answer(text: str | None, action: int, name: str, inventory: prompting.Inventory) -> str:
    reason = prompting.parse(text, inventory).reason if isinstance(text, str) else ""
    kind = "bad" if action == INVALID else "zero" if name == "MONITOR" else "act"
    said = f'<span class="said">{shown(text) or "(nothing)"}</span><br>' if isinstance(text, str) else ""
    return f'{said}<span class="{kind}">{shown(name)}{f": {shown(reason)}" if reason else ""}</span>'


def _facts(
    record: dict[str, Any], scenario: scenarios.Scenario, played: replays.Replay, ticks: int, total: float
) -> str:
    state = jax.tree.map(lambda x: x[ticks], played.state)
    attack = f"{tuple(PERSONALITIES)[int(state.who)]} attacker" if state.attack else "no attack"
    facts = {
        "campaign": scenario.title,
        "rules": record["rules"],
        "reward": record["reward"] if isinstance(record["reward"], str) else "own weights",
        "policy": " ".join(str(record[k]) for k in ("policy", "model") if k in record) or "actions of a record",
        "seed and episode": f"{record['seed']}, {record['episode']}",
        "in truth": attack,
        "return": f"{total:+.3f} in {ticks} ticks",
        "outcome": OUTCOMES[loss_name(scenario, state.status)]
        + f", {int(state.succeeded)} of {len(scenario.stages)} stages succeeded"
        + ("" if state.end == RUNNING else f"; end: {end_name(scenario, int(state.end), state.status)}"),
        "invalid actions": int(played.signals.invalid.sum()),
    }
    return "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{shown(str(v))}</dd></div>" for k, v in facts.items()) + "</dl>"


def save(
    folder: Path, scenario: scenarios.Scenario, dims: Dims, played: Any, many: int, same: dict[str, Any]
) -> dict[str, str]:
    """Write episodes from that of the lowest return to that of the highest, as records and as pages: title by page.

    `same` holds the fields of a record that all have in common; `played`, a `play.Played`, are the episodes from
    0 on, its actions those of `dims`.
    """
    folder.mkdir(exist_ok=True)
    built_in = [name for group in scenarios.GROUPS for name in scenarios.names(group)]
    place, returns = scenario.id, played.stats.episode_return
    if scenario.id not in built_in or scenarios.load(scenario.id) != scenario:
        place = str(folder / f"{scenario.id}.yaml")
        cli.write_text(Path(place), scenarios.dump(scenario))
    most = len(returns) - 1
    ranks = {round(most * i / (many - 1)) for i in range(many)} if many > 1 else {most // 2} if many else set()
    order = np.argsort(returns, kind="stable").tolist()
    pages = {}
    for e in (order[rank] for rank in sorted(ranks)):
        ticks = int(played.stats.length[e])
        texts = [turn.texts[e] for turn in played.turns[:ticks]]
        actions = [action_text(int(a), scenario, dims) for a in played.actions[:ticks, e]]
        record = {"version": SIMULATOR_VERSION, "scenario": place, **same, "episode": e, "actions": actions}
        record |= {"texts": texts, "return": float(returns[e])}
        name = f"{scenario.id}-{same['policy']}-{e}"
        cli.write_text(
            folder / f"{name}.json", json.dumps(record, indent=2) + "\n"
        )  # in ASCII: texts may hold anything
        cli.write_text(folder / f"{name}.html", page(record))
        pages[f"{name}.html"] = f"{scenario.id}, {same['policy']}, episode {e}, return {returns[e]:+.2f}"
    return pages


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("record", metavar="RECORD.json", help="a replay record, as an evaluation or a sweep writes it")
    p.add_argument("--out", type=cli.output_path, required=True, metavar="page.html", help="write the page here")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, replay, write the page."""
    args = parser().parse_args(argv)
    try:
        text = page(replays.load_record(args.record))
    except scenarios.ScenarioError:
        raise
    except ValueError as error:
        cli.fail(str(error))
    cli.write_text(args.out, text)

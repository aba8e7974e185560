"""What an evaluation writes: rows as JSON and CSV, the report for people, its pictures."""

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from grpo.reporting.measure import Row, Told, rows_of
from grpo.reporting.pictures import actions_figure, campaigns_figure, lengths_figure, returns_figure
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli
from prompting import FORMAT_VERSION

PICTURES = {
    "returns.png": "Mean return and IQM with 95 % bands",
    "campaigns.png": "Mean return on each campaign",
    "lengths.png": "Return against length of every episode",
    "actions.png": "Actions before the first alert and after it",
}


def write(out: Path, given: Row, made: Row, told: Mapping[str, Sequence[Told]], pages: Mapping[str, str]) -> None:
    """All files of a report; rows.json last, so that it is there only when the rest is. `pages`: title by file.

    `given`: the settings; `made`: command, models and the like.
    """
    about = {k: given[k] for k in ("rules", "reward", "personality", "seed", "simulator_version")}
    rows = [{**row, **about, "version": cli.version()} for row in rows_of(told)]
    (out / "pictures").mkdir(exist_ok=True)
    figures = (returns_figure(rows), campaigns_figure(rows), lengths_figure(told), actions_figure(rows))
    for name, figure in zip(PICTURES, figures, strict=True):
        cli.write_whole(out / "pictures" / name, partial(figure.savefig, format="png", dpi=130, bbox_inches="tight"))
    cli.write_text(out / "rows.csv", _csv(rows))
    cli.write_text(out / "report.md", markdown(rows, given, made, told, pages))
    cli.write_json(out / "rows.json", rows)


def machine() -> Row:
    """What this runs on."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name\t: ")
    except OSError:
        words = []
    processor = words[1].splitlines()[0] if len(words) > 1 else platform.machine()
    packages = ("jax", "torch", "transformers", "llguidance", "peft", "bitsandbytes")
    return {
        "versions": ", ".join(f"{p} {metadata.version(p)}" for p in packages if find_spec(p)),
        "project": f"{cli.version()}, simulator {SIMULATOR_VERSION}, format {FORMAT_VERSION}",
        "hardware": f"{processor}, {len(os.sched_getaffinity(0))} cores",
    }


def _csv(rows: Sequence[Row]) -> str:
    flat = []
    for row in rows:
        one: Row = {}
        for name, value in row.items():
            if name.endswith("_ci"):
                one[f"{name[:-3]}_low"], one[f"{name[:-3]}_high"] = value or (None, None)
            elif isinstance(value, dict):
                one |= {f"{name}_{k}".replace(" ", "_").lower(): v for k, v in value.items()}
            elif name != "reasons":
                one[name] = value
        flat.append(one)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(k for one in flat for k in one)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def number(row: Row, name: str, form: str = "+.2f") -> str:
    """A value of a row, with its interval where it has one."""
    if row[name] is None:
        return "–"
    ends = row.get(f"{name}_ci")
    return f"{row[name]:{form}}" + (f" [{', '.join(f'{x:{form}}' for x in ends)}]" if ends else "")


# fmt: off
RESULTS = {
    "return [95 %]": ("mean_return", "+.2f"), "std": ("std_return", ".2f"), "IQM [95 %]": ("iqm_return", "+.2f"),
    "over monitor [95 %]": ("over_monitor", "+.2f"), "P(over monitor)": ("p_over_monitor", ".2f"),
    "over random [95 %]": ("over_random", "+.2f"), "over base [95 %]": ("over_base", "+.2f"),
    "P(over base)": ("p_over_base", ".2f"), "exfil": ("exfil_rate", ".0%"), "stages": ("stages_succeeded", ".2f"),
    "downtime": ("downtime", ".1f"), "length": ("length", ".1f"),
}
RESPONSE = {
    "detected": ("detected", ".0%"), "contained": ("contained", ".0%"), "recovered": ("recovered", ".0%"),
    "hours to detect": ("hours_to_detect", ".1f"), "hours to contain": ("hours_to_contain", ".1f"),
    "hours to recover": ("hours_to_recover", ".1f"), "hours of dwell": ("hours_of_dwell", ".1f"),
    "hours of downtime": ("hours_of_downtime", ".1f"),
}
CONDUCT = {
    "invalid": ("invalid_rate", ".1%"), "fallback": ("fallback_rate", ".1%"), "blind": ("blind_rate", ".0%"),
    "contained before alert": ("contained_before_alert", ".0%"), "evidence-backed": ("evidence_backed", ".0%"),
    "false containments": ("false_containments", ".0%"),
    "shuffle drop [95 %]": ("shuffle_drop", ".2f"), "shuffle loss [95 %]": ("shuffle_loss", "+.2f"),
    "name drop [95 %]": ("name_drop", ".2f"), "name loss [95 %]": ("name_loss", "+.2f"),
    "decisions/s": ("decisions_per_second", ".2f"), "tokens/s": ("tokens_per_second", ".1f"),
    "seconds": ("seconds", ".1f"),
}
# fmt: on


def table_of(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """A Markdown table; columns in which no row has anything are left out."""
    kept = {head: spec for head, spec in columns.items() if any(r[spec[0]] is not None for r in rows)}
    lines = [f"| policy | {' | '.join(kept)} |", "|---" + "|---:" * len(kept) + "|"]
    return lines + [f"| {r['policy']} | {' | '.join(number(r, *spec) for spec in kept.values())} |" for r in rows]


LEGEND = """*over X*: mean difference to X in the same episodes. *P(over X)*: chance to earn more than X in an
episode, ties half (Agarwal et al. 2021, paired). *IQM*: mean of the middle half of the returns. *invalid*: share of
ticks without a legal action; *fallback*: share of answers with nothing that could be called an action. *blind*: share
of episodes whose first containment came before any alert; *contained before alert*: share of containments;
*evidence-backed*: share of containments of a target confirmed before, *false containments*: share of containments
of an entity that no stage names, or without an attack (elsewhere: evidence-gated action rate, false-positive
containment rate). *shuffle drop*: share of the gain over monitor that is lost on another episode's alerts and
forensics, only where that gain is significant; *shuffle loss*: the same loss in points; *name drop* and *name
loss*: likewise, where assets and identities have names that say nothing. *detected*: share of the episodes with a
compromise in which something compromised was confirmed; *contained*: in which, later, all that was compromised was cut
off; *recovered*: in which, after that, no asset was compromised and no control in force but on compromised
identities. Mean hours, where it happened,
from the first compromise, to recover from the containment; *dwell*: with something compromised that is not cut off;
*downtime*: load times hours. A tick is half an hour. Intervals: 95 % bootstrap over episodes,
stratified by campaign (2,000 resamples). Seconds, decisions and tokens are those of answering; without a model, of
playing, compiling included."""


def markdown(
    rows: Sequence[Row], given: Row, made: Row, told: Mapping[str, Sequence[Told]], pages: Mapping[str, str]
) -> str:
    """The report for people."""
    lines = [
        f"# {given['model']}{' with ' + given['adapter'] if given['adapter'] else ''} as a defender",
        "",
        f"{given['episodes']} episodes of each campaign, rules `{given['rules']}`, reward `{given['reward']}`, "
        f"attacker {given['personality']}; {given['decode']} answers, temperature "
        f"{given['temperature']:g}, layout {given['layout']}, asked {given['asking']}.",
    ]
    for scenario in dict.fromkeys(r["scenario"] for r in rows):
        mine = [r for r in rows if r["scenario"] == scenario]
        lines += ["", f"## {scenario}", ""]
        for columns in (RESULTS, RESPONSE, CONDUCT):
            lines += [*table_of(mine, columns), ""]
        lines += [
            f"- {t.policy}: {t.words}" for many in told.values() for t in many if t.scenario == scenario and t.words
        ]
        for r in (r for r in mine if r["reasons"]):
            lines.append(f"- answers of {r['policy']}: {', '.join(f'{k} {v}' for k, v in r['reasons'].items())}")
    lines += ["", LEGEND, "", "## Pictures", ""]
    lines += [f"![{title}](pictures/{name})\n" for name, title in PICTURES.items()]
    if pages:
        lines += ["## Transcripts", "", *(f"- [{title}](transcripts/{name})" for name, title in pages.items()), ""]
    lines += ["## How it was made", "", "```sh", made["command"], "```", ""]
    lines += [f"- seed: {given['seed']}, of the episodes {made['seed']}"]
    lines += [f"- {k}: {v}" for k, v in machine().items()]
    lines += [f"- {row}: {', '.join(f'{k} {v}' for k, v in about.items())}" for row, about in made["models"].items()]
    return "\n".join([*lines, ""])

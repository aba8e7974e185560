"""What a person reads of an imported incident, as Markdown: `report`."""

from collections.abc import Sequence
from itertools import groupby

from scenarios import attack
from scenarios.imported import Imported
from scenarios.model import TICK_MINUTES, Asset, Benign, Identity, Scenario, Stage

# Kinds of remarks in the order of the report, with what to do about them.
ADVICE = {
    "loss assumed": "add the exfiltration or the impact to the flow, if there was one",
    "action left out": "give the action a technique",
    "circle cut": "draw the action a second time, if it happened twice",
    "beginning chosen": "draw a line to where it began",
    "condition did not hold": "draw what happened from the True end of the condition",
    "lines joined": "join the lines by an operator, or import with `--join all`",
    "operators left out": "remove them, or draw what they join",
    "lines left out": "remove them, or tie them to an action",
    "earlier loss": "nothing, if the later one is the loss that counts",
    "after the loss": "nothing, if the attack was over then",
    "technique by name": "give the action this technique",
    "tactic chosen": "give the action its tactic",
    "tactic mended": "nothing: ATT&CK has moved on, or the pair never existed",
    "tactic by technique": "nothing: the technique has one tactic only",
    "technique renamed": "nothing: ATT&CK has moved on",
    "assets assumed": "name the assets of actions in the flow, or edit the scenario",
    "identities assumed": "name the accounts of actions in the flow, or edit the scenario",
}


def report(imported: Imported) -> str:
    """The report of one import."""
    s = imported.scenario
    lines = [f"# {_text(s.title)}", "", f"From `{_text(imported.source)}`, as the scenario `{s.id}`.", ""]
    counts = f"{len(s.stages)} stages, {len(s.assets)} assets, {len(s.identities)} identities"
    lines += [f"{counts}; at most {s.horizon} ticks, {s.horizon * TICK_MINUTES / 60:g} hours.", ""]
    lines += ["## What the import decided", ""]
    place = list(ADVICE)
    remarks = sorted(imported.remarks, key=lambda x: place.index(x.kind))
    for kind, those in groupby(remarks, key=lambda x: x.kind):
        lines += [f"**{kind}** — {ADVICE[kind]}", "", *(f"- {_text(x.text)}" for x in those), ""]
    lines += [] if remarks else ["Nothing.", ""]
    lines += ["## Stages", "", *_stages(s), "", "## Assumed", "", *_assumed(s), "", "## Sources", ""]
    lines += [f"- `{source.id}`: {_text(source.text)}" for source in s.sources]
    return "\n".join(lines) + "\n"


def _stages(s: Scenario) -> list[str]:
    known = attack.techniques()
    rows = ["| stage | technique | after | target | ticks | success | detection | loss |", "|" + "---|" * 8]
    for x in s.stages:
        after = [" and ".join(x.prerequisites), " or ".join(x.any_prerequisites)]
        target = ", ".join(filter(None, (x.asset, x.identity)))
        pair = f"{x.tactic} {x.technique} {known[x.technique][0]}"
        joined = "; one of ".join(filter(None, after))
        numbers = f"{x.dwell[0]} to {x.dwell[1]} | {x.success:g} | {x.detection:g} | {x.loss or ''}"
        rows.append(f"| {x.id} | {pair} | {joined} | {target} | {numbers} |")
    return rows


def _assumed(s: Scenario) -> list[str]:
    """Per part of the scenario and source: which fields, in how many entries."""
    rows = ["| of | fields | in how many | source |", "|" + "---|" * 4]
    parts: dict[str, Sequence[Scenario | Asset | Identity | Stage | Benign]] = {
        **{"scenario": (s,), "assets": s.assets, "identities": s.identities, "stages": s.stages, "benign": s.benign}
    }
    for part, entries in parts.items():
        found: dict[tuple[str, str], int] = {}
        for entry in entries:
            for assumed in entry.assumed:
                for field in assumed.fields:
                    found[assumed.source, field] = found.get((assumed.source, field), 0) + 1
        rows += [f"| {part} | {f} | {n} of {len(entries)} | {source} |" for (source, f), n in found.items()]
    return rows


def _text(text: str) -> str:
    """A text of the flow in Markdown: no markup of its own."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in text if c.isprintable())

"""What MkDocs does beside rendering: tables made from the code, pages and pictures that live elsewhere, their links."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

import scenarios
from grpo.learning import signals as grpo_signals
from jaxsim import actions, reward, rules, types
from jaxsim.audit.budgets import BUDGETS

ROOT = Path(__file__).resolve().parent.parent
PICTURES = "benchmarks/results"
TRAINING = ROOT / "grpo" / "presets"  # of grpo.training.settings, which needs torch
# Pages of the site that are files of the project, and where they lie.
PAGES = {
    "index.md": "README.md",
    "format.md": "prompting/FORMAT.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the pictures that lie outside docs/."""
    added = {page: ROOT / source for page, source in PAGES.items()}
    added |= {f"figures/{picture.name}": picture for picture in sorted((ROOT / PICTURES).glob("*.png"))}
    for uri, source in added.items():
        files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the tables, and turn links of the repository into links of the site."""
    markdown = re.sub(r"^<!-- table: (\w+) -->$", lambda found: TABLES[found[1]](), markdown, flags=re.MULTILINE)
    moved = {f"{PICTURES}/": "figures/", "docs/": ""} | {source: uri for uri, source in PAGES.items()}
    for source, uri in moved.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}", f"]({uri}", markdown)
    return markdown


# --- tables ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def comments(fields: type) -> dict[str, str]:
    """The comment beside each field of a NamedTuple, without shape and dtype."""
    found = re.findall(r"^    (\w+): [^#\n]+  # (.*)$", inspect.getsource(fields), re.MULTILINE)
    return {name: re.sub(r"^\([^)]*\) \w+, ", "", comment) for name, comment in found}


def number(value: float) -> str:
    return "none" if value == float("inf") else f"{value:g}"


def shown(value: Any) -> str:
    """A rule's value as in a sentence."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value[0]} to {value[1]}" if isinstance(value, tuple) else number(value)


def switches() -> str:
    return table(
        ["switch", "what it sets", "the exploit it closes", "its cost in realism"],
        (
            [f"`{name}`", ", ".join(f"`{k}` {shown(v)}" for k, v in s.on.items()) or "`RESTORE`", s.closes, s.costs]
            for name, s in rules.SWITCHES.items()
        ),
    )


def values() -> str:
    presets = [rules.rules(name)._asdict() for name in rules.PRESETS]
    said = comments(types.Rules)

    def plain(value: Any) -> str:
        """Of an array."""
        found = value.tolist()
        return shown(
            tuple(found) if isinstance(found, list) else round(found, 6) if isinstance(found, float) else found
        )

    return table(
        ["rule", "meaning", *rules.PRESETS],
        ([f"`{name}`", said[name], *(plain(values[name]) for values in presets)] for name in presets[0]),
    )


def personalities() -> str:
    said = comments(types.Personality)
    return table(
        ["property", "meaning", *rules.PERSONALITIES],
        (
            [f"`{name}`", said[name], *(shown(p[name]) for p in rules.PERSONALITIES.values())]
            for name in types.Personality._fields
        ),
    )


def weights() -> str:
    said = comments(types.RewardWeights)
    return table(
        ["weight", "points", *(f"`{name}`" for name in reward.PRESETS)],
        (
            [f"`{name}`", said[name], *(number(preset[name]) for preset in reward.PRESETS.values())]
            for name in types.RewardWeights._fields
        ),
    )


def verbs() -> str:
    dims = types.Dims(assets=1, identities=1, stages=1, max_lag=1, restore=True)
    verb, entity = actions.table(dims)
    classic = rules.rules("classic")
    load = {
        types.ISOLATE_ASSET: classic.load_isolated,
        types.BLOCK_EGRESS: classic.load_egress,
        types.REVOKE_IDENTITY: classic.load_revoked,
    }

    def target(v: int) -> str:
        kinds = {-1: "none", 0: "an asset", 1: "an identity"}
        return " or ".join(kinds[e] for e in sorted(entity[verb == v].tolist()))

    return table(
        ["action", "target", "load per tick and unit of the target's value"],
        ([f"`{name}`", target(v), f"{float(load[v]):.1f}" if v in load else "0"] for v, name in enumerate(types.VERBS)),
    )


def campaigns() -> str:
    many = [scenarios.load(name) for group in scenarios.GROUPS for name in scenarios.names(group)]
    return table(
        ["campaign", "assets", "identities", "stages", "benign activities", "horizon, ticks", "held out"],
        (
            [
                f"`{s.id}`", len(s.assets), len(s.identities), len(s.stages), len(s.benign), s.horizon,
                "yes" if s.held_out else "no",
            ]
            for s in many
        ),
    )  # fmt: skip


def presets() -> str:
    given = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(TRAINING.glob("*.yaml"))}
    fields = dict.fromkeys(field for preset in given.values() for field in preset)

    def cell(value: Any) -> str:
        listed = value if isinstance(value, list) else [value]
        return ", ".join(str(x).lower() if isinstance(x, bool) else str(x) for x in listed)

    return table(
        ["setting", *(f"`{name}`" for name in given)],
        ([f"`{f}`", *(cell(preset[f]) if f in preset else "" for preset in given.values())] for f in fields),
    )


def paid() -> str:
    profiles = grpo_signals.PROFILES
    return table(
        ["signal", "value", "profile", "says nothing about the action"],
        (
            [
                f"`{name}`",
                " ".join((inspect.getdoc(f) or "").split()),
                ", ".join(f"`{p}`" for p, weights in profiles.items() if name in weights),
                "yes" if name in grpo_signals.FORMAT_ONLY else "no",
            ]
            for name, f in grpo_signals.SIGNALS.items()
        ),
    )


def signals() -> str:
    return table(["signal", "counts, in a tick"], ([f"`{k}`", v] for k, v in comments(types.Signals).items()))


def channels() -> str:
    body = inspect.getsource(reward.channels)
    found = re.findall(r"^        (\w+)=(.*?),\n(?=        \w+=|    \))", body, re.MULTILINE | re.DOTALL)
    return table(["channel", "is"], ([f"`{name}`", f"`{' '.join(formula.split())}`"] for name, formula in found))


def budgets() -> str:
    said = comments(type(next(iter(BUDGETS.values()))))
    return table(
        ["setting", "meaning", *(f"`{name}`" for name in BUDGETS)],
        (
            [f"`{k}`", said[k], *(", ".join(map(str, v)) if isinstance(v, tuple) else v for v in row)]
            for k, row in ((k, [getattr(b, k) for b in BUDGETS.values()]) for k in said)
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        verbs,
        campaigns,
        switches,
        values,
        personalities,
        weights,
        signals,
        channels,
        budgets,
        presets,
        paid,
    )
}

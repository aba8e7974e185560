"""What is odd in a valid scenario: not wrong, but seldom meant. `oddities` gives a line for each, with what to do.

>>> from scenarios.load import load
>>> from scenarios.oddities import oddities
>>> print(next(oddities(load("supply_chain_token_drift"))).message[:10])
is missing
"""

import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files

from scenarios.checks import Problem
from scenarios.load import load, loads
from scenarios.model import TICK_MINUTES, Scenario, Stage
from scenarios.read import Tree, file_text, read, report

TEMPLATE_ID = "a-first-scenario"
FEW, MANY = 0.02, 0.8  # shares of alerts that are of the attack
UNSEEN = 0.2  # alerts of an attack that comes through at once
UNLIKELY = 0.05  # chance that an attack comes to its loss at the first try


def template() -> str:
    """The commented file that `python -m scenarios new` writes."""
    return files("scenarios").joinpath("template.yaml").read_text(encoding="utf-8")


def checked(path: str) -> tuple[Scenario, list[str]]:
    """A scenario by name or file, and a line for each thing that is odd in it.

    Raises ScenarioError when it is no valid scenario.
    """
    scenario = load(path)
    tree = read(file_text(path), path.lower().endswith(".json")) if os.path.isfile(path) else Tree({}, [], {})
    return scenario, report(oddities(scenario), tree, path)


def oddities(s: Scenario) -> Iterator[Problem]:
    """A problem for each thing that is odd, in the order of the file."""
    yield from _left(s)
    yield from _times(s)
    yield from _network(s)
    yield from _stages(s)
    yield from _alerts(s)


@cache
def _template() -> Scenario:
    return loads(template(), "template.yaml")


def _left(s: Scenario) -> Iterator[Problem]:
    """What nobody has replaced in the template."""
    given = _template()
    for field in ("id", "title", "description"):
        if getattr(s, field) == getattr(given, field):
            yield Problem((field,), "is still that of the template; replace it")
    if not s.description:
        yield Problem(("description",), "is missing; say in a few sentences what the attacker is after, for people")
    for part in ("assets", "identities", "stages", "benign"):
        own, theirs = getattr(s, part), getattr(given, part)
        if own and own == theirs:
            yield Problem((part,), "are all those of the template; replace them by those of your network")


def _times(s: Scenario) -> Iterator[Problem]:
    way = _shortest(s.stages)
    least, usual = sum(x.dwell[0] for x in way), sum(sum(x.dwell) / 2 for x in way)
    hours = f"{usual * TICK_MINUTES / 60:.3g} hours"
    if least > s.horizon:
        text = f"is over before the attack can be: its shortest way takes {least} ticks at least"
        yield Problem(("horizon",), f"{text}; give {2 * math.ceil(usual)}")
    elif usual > s.horizon:
        text = f"is over before most attacks are: the shortest way takes {usual:g} ticks ({hours}); give twice that"
        yield Problem(("horizon",), text)
    elif s.horizon > 20 * usual:
        text = f"is {s.horizon / usual:.0f} times what the shortest way takes ({usual:g} ticks, {hours})"
        yield Problem(("horizon",), f"{text}; give less, or longer `dwell`")


def _network(s: Scenario) -> Iterator[Problem]:
    for part, field, control in (("assets", "asset", "isolated"), ("identities", "identity", "revoked")):
        entries = getattr(s, part)
        touched = {getattr(x, field) for x in s.stages} - {None}
        if entries and len(touched) == len(entries):
            text = f"are all touched by the attack, so that whatever is {control} was worth it"
            yield Problem((part,), f"{text}; add some that it leaves alone")
        value = "criticality" if part == "assets" else "privilege"
        if len(entries) > 2 and len({getattr(x, value) for x in entries}) == 1:
            text = (
                f"all have the {value} {getattr(entries[0], value):g}, so that it costs the same whichever is {control}"
            )
            yield Problem((part,), f"{text}; give them what they are worth")


def _stages(s: Scenario) -> Iterator[Problem]:
    before = [x for x in s.stages if x.loss is None]
    finds = [x for x in before if x.compromises_asset or x.compromises_identity]
    if before and not finds:
        text = "compromise nothing before the loss, so that no investigation can find the attack"
        yield Problem(("stages",), f"{text}; add `compromises_asset: true` or `compromises_identity: true`")
    needed = {name for x in s.stages for name in (*x.prerequisites, *x.any_prerequisites)}
    for i, x in enumerate(s.stages):
        if x.loss is None and x.id not in needed:
            yield Problem(("stages", i), "leads nowhere: no stage needs it; make it a prerequisite, or remove it")
        if x.success == 0:
            yield Problem(("stages", i, "success"), "is 0, so that the stage never succeeds; give more, or remove it")
    way = _shortest(s.stages)
    chance = math.prod(x.success for x in way)
    if chance < UNLIKELY:
        text = f"succeed one after the other in {chance:.1%} of attacks at the first try, on the shortest way"
        yield Problem(("stages",), f"{text}; raise `success`, if the attack has happened")


def _alerts(s: Scenario) -> Iterator[Problem]:
    """Too little, too clean or too noisy to be worth reading."""
    way = _shortest(s.stages)
    seen = sum(2 * x.detection for x in way)  # of each of two draws
    others = math.fsum([s.noise_rate, *(b.rate for b in s.benign)]) * sum(sum(x.dwell) / 2 for x in way)
    if seen < UNSEEN:
        text = f"raise {seen:.2g} alerts in all on the shortest way, so that nobody can see the attack coming"
        yield Problem(("stages",), f"{text}; raise `detection`, or say which sensor sees it")
    elif others == 0:
        text = "is 0 and there is no benign activity, so that every alert is of the attack; give the rate of your queue"
        yield Problem(("noise_rate",), text)
    elif not FEW <= (share := seen / (seen + others)) <= MANY:
        much = "many" if share > MANY else "few"
        text = f"and the rates of benign leave {share:.0%} of the alerts to the attack while it runs, which is {much}"
        yield Problem(("noise_rate",), f"{text} (triaged: about 36 %); `jaxsim-soc calibrate` helps to find the rate")
    if not s.benign:
        text = "is missing, so that nothing but the attack raises alerts again and again about one host"
        yield Problem(("benign",), f"{text}; add everyday work, such as a backup or a helpdesk that logs in")


def _shortest(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that must succeed for a loss at the least, in ticks on average."""
    by_id = {x.id: x for x in stages}
    waiting = dict(by_id)
    way: dict[str, frozenset[str]] = {}

    def ticks(names: frozenset[str]) -> tuple[float, list[str]]:
        return sum(sum(by_id[name].dwell) / 2 for name in names), sorted(names)

    while waiting:  # no circle: that was checked
        ready = [x for x in waiting.values() if not {*x.prerequisites, *x.any_prerequisites} & waiting.keys()]
        for x in ready:
            every = frozenset({x.id}).union(*(way[name] for name in x.prerequisites))
            way[x.id] = min((every | way[name] for name in x.any_prerequisites), key=ticks, default=every)
            del waiting[x.id]
    found = min((way[x.id] for x in stages if x.loss is not None), key=ticks)
    return [x for x in stages if x.id in found]

"""Attack Flows as scenarios: structure, what is assumed, play, and the same game there and back."""

import json
import random
from typing import Any

import flow_files
import numpy as np
import pytest
from flow_files import NODES, builder, chain, imported, kinds, stix, text, uid
from hypothesis import given, settings
from hypothesis import strategies as st

import scenarios
from jaxsim.compile import compile_scenario, dims_of
from jaxsim.names import end_name, loss_name
from jaxsim.twin_policies import Policy, episode, monitor, plan
from jaxsim.twin_reward import REWARDS
from jaxsim.twin_rules import CLASSIC, HARDENED, ISOLATE, Rules
from jaxsim.types import BLOCKED, EXFIL, HORIZON, IDLE, SUCCEEDED
from scenarios import attack, priors
from scenarios.attack_flow import SCENARIO, parse_flow
from scenarios.export_flow import export_flow
from scenarios.generate import generate
from scenarios.import_report import ADVICE
from scenarios.imported import Imported, from_flow
from scenarios.networks import MAX_SEED, SPLITS

FILES = [name for group in scenarios.GROUPS for name in scenarios.names(group)]
PHISH = ("TA0001", "T1566.001")
RUN, DUMP, MOVE = ("TA0002", "T1059.001"), ("TA0006", "T1003.001"), ("TA0008", "T1021.001")
OUT, LOCK = ("TA0010", "T1041"), ("TA0040", "T1486")


def simple(nodes: dict[str, Any], *ways: tuple[str, ...], **options: Any) -> Imported:
    """A flow of these nodes along these ways."""
    edges = list(dict.fromkeys(edge for way in ways for edge in chain(*way)))
    return imported(stix(nodes, edges), **options)


def needs(found: Imported) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {x.id: (x.prerequisites, x.any_prerequisites) for x in found.scenario.stages}


# --- a flow as a scenario ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [stix, builder])
def test_a_flow_becomes_a_scenario(form: Any) -> None:
    s = imported(form()).scenario
    assert (s.id, s.title, s.description) == (
        "a-small-incident",
        "A small incident",
        "Written for a test.\nTwo ways in.",
    )
    assert needs(imported(form())) == {
        "phish-a-clerk": ((), ()),
        "use-a-leaked-password": ((), ()),
        "run-a-loader": ((), ("phish-a-clerk", "use-a-leaked-password")),
        "dump-credentials": (("run-a-loader",), ()),
        "move-by-rdp": (("dump-credentials",), ()),
        "gather-the-files": (("move-by-rdp",), ()),
        "archive-them": (("move-by-rdp",), ()),
        "upload-them": (("gather-the-files", "archive-them"), ()),
    }
    assert [(x.asset, x.identity) for x in s.stages] == [
        ("clerk-pc", None),
        ("host", "account"),  # a leaked account, and no asset before it
        ("host", None),  # that of what comes last before it
        ("host", "account-2"),
        ("host-2", None),  # a new one, for the attacker moves
        ("file-server", None),
        ("host-2", None),
        ("host-2", None),
    ]
    assert [x.loss for x in s.stages] == [None] * 7 + ["exfil"]
    assert scenarios.loads(scenarios.dump(s)) == s


def test_both_forms_give_the_same_scenario() -> None:
    assert imported(stix()).scenario == imported(builder()).scenario


def test_every_value_that_the_flow_does_not_give_is_marked() -> None:
    s = imported(stix()).scenario
    given = {"id", "name", "tactic", "technique", "prerequisites", "any_prerequisites", "exfil", "impact", "assumed"}
    for stage in s.stages:
        marked = {field for a in stage.assumed for field in a.fields}
        named = {"asset"} if stage.asset in ("clerk-pc", "file-server") else set()
        left = set(stage.model_dump(exclude_defaults=True)) - given - named
        assert marked == left | {"signal"}
    for asset in s.assets:
        marked = {field for a in asset.assumed for field in a.fields}
        assert marked == {"kind", "criticality", "segment"} | ({"id"} if asset.id.startswith("host") else set())
    assert {source.id for source in s.sources} >= {a.source for x in (s, *s.stages, *s.benign) for a in x.assumed}
    known = set(priors.sources()) | {"import", "attack"}
    assert {source.id for source in s.sources} <= known


def test_conditions_that_do_not_hold_are_left_out() -> None:
    nodes = {"Phish": PHISH, "It is opened": None, "Run": RUN, "Try again": PHISH, "Send": OUT}
    edges = chain("Phish", "It is opened", "Run", "Send")
    for form in (stix, builder):
        found = imported(form(nodes, edges, no=[("It is opened", "Try again")]))
        assert [x.id for x in found.scenario.stages] == ["phish", "run", "send"]
        assert "condition did not hold" in kinds(found)
        assert any("'Try again'" in remark.text for remark in found.remarks)


@pytest.mark.parametrize("form", [stix, builder])
def test_circles_are_cut(form: Any) -> None:
    nodes = {"Phish": PHISH, "Run": RUN, "Dump": DUMP, "Move": MOVE, "Send": OUT}
    edges = [*chain("Phish", "Run", "Dump", "Move", "Send"), ("Move", "Run")]
    found = imported(form(nodes, edges))
    assert needs(found)["run"] == (("phish",), ())
    assert "the line from 'Move' to 'Run' closes a circle" in " ".join(x.text for x in found.remarks)


def test_a_circle_without_a_beginning_begins_with_the_first() -> None:
    found = simple({"Run": RUN, "Dump": DUMP, "Send": OUT}, ("Run", "Dump", "Run"), ("Dump", "Send"))
    assert needs(found) == {"run": ((), ()), "dump": (("run",), ()), "send": (("dump",), ())}
    assert {"circle cut", "beginning chosen"} <= kinds(found)


def test_several_lines_are_alternatives_unless_all_are_asked_for() -> None:
    nodes = {"Phish": PHISH, "Spray": ("TA0006", "T1110.003"), "Run": RUN, "Send": OUT}
    ways = (("Phish", "Run", "Send"), ("Spray", "Run"))
    assert needs(simple(nodes, *ways))["run"] == ((), ("phish", "spray"))
    assert needs(simple(nodes, *ways, every=True))["run"] == (("phish", "spray"), ())
    assert "lines joined" in kinds(simple(nodes, *ways))


def test_starts_need_nothing_even_where_lines_come_to_them() -> None:
    nodes = {"Phish": PHISH, "Run": RUN, "Send": OUT}
    edges = chain("Phish", "Run", "Send")
    starts = [uid("attack-action", name) for name in ("Phish", "Run")]
    assert needs(imported(stix(nodes, edges, start_refs=starts)))["run"] == ((), ())


def test_what_a_stage_cannot_need_is_refused_by_name() -> None:
    nodes = {
        "A": PHISH,
        "B": PHISH,
        "C": PHISH,
        "D": PHISH,
        "both": "AND",
        "two": "AND",
        "one": "OR",
        "Go": RUN,
        "S": OUT,
    }
    ways = (
        ("A", "both"),
        ("B", "both"),
        ("C", "two"),
        ("D", "two"),
        ("both", "one"),
        ("two", "one"),
        ("one", "Go", "S"),
    )
    with pytest.raises(scenarios.ScenarioError, match=r"'Go' comes after an OR of ANDs.*one of \('A', 'C'\).*draw the"):
        simple(nodes, *ways)


@pytest.mark.parametrize("operator", ["AND", "OR"])
def test_an_operator_with_nothing_before_it_is_left_out(operator: str) -> None:
    nodes = {"A": ("TA0001", "T1566.001"), "X": operator, "E": ("TA0010", "T1041")}
    found = imported(stix(nodes, [("A", "E"), ("X", "E")]))
    assert found.scenario.stages[1].any_prerequisites + found.scenario.stages[1].prerequisites == ("a",)
    assert "operators left out" in kinds(found) and "operators left out" in ADVICE


def test_nested_operators_of_one_kind_are_one() -> None:
    nodes = {"A": PHISH, "B": PHISH, "C": PHISH, "in": "OR", "out": "OR", "it holds": None, "Go": RUN, "S": OUT}
    ways = (("A", "in"), ("B", "in"), ("in", "it holds", "out"), ("C", "out"), ("out", "Go", "S"))
    assert needs(simple(nodes, *ways))["go"] == ((), ("a", "b", "c"))


def test_an_action_without_a_technique_hands_on_what_it_needs() -> None:
    nodes = {
        "Phish": PHISH,
        "They wait": ("", ""),
        "Phone app": ("TA0027", "T1474"),
        "Run": RUN,
        "Dump": DUMP,
        "Send": OUT,
    }
    found = simple(nodes, ("Phish", "They wait", "Phone app", "Run", "Dump", "Send"))
    assert needs(found)["run"] == (("phish",), ())
    assert sum(remark.kind == "action left out" for remark in found.remarks) == 2


@pytest.mark.parametrize(
    ("given", "pair", "kind"),
    [
        (("TA0005", "T1562.001"), ("TA0112", "T1685"), "technique renamed"),
        (("TA0008", "T1076"), ("TA0008", "T1021.001"), "technique renamed"),
        (("", "T1003.001"), ("TA0006", "T1003.001"), "tactic by technique"),
        (("TA0002", "T1003.001"), ("TA0006", "T1003.001"), "tactic mended"),
        (("", "T1053.005"), ("TA0002", "T1053.005"), "tactic chosen"),
        (("Credential Access", "t1003.001"), ("TA0006", "T1003.001"), None),
        (("credential-access", "T1003.001"), ("TA0006", "T1003.001"), None),
    ],
)
def test_pairs_that_attack_has_no_longer_are_mended(given: Any, pair: Any, kind: str | None) -> None:
    found = simple({"Phish": PHISH, "Do": given, "Send": OUT}, ("Phish", "Do", "Send"))
    stage = found.scenario.stages[1]
    assert (stage.tactic, stage.technique) == pair
    assert kind is None or kind in kinds(found)
    marked = {field for a in stage.assumed for field in a.fields}
    assert bool(marked & {"tactic", "technique"}) == (kind is not None)


def test_a_technique_may_be_given_by_its_name() -> None:
    found = simple(
        {"OS Credential Dumping: LSASS Memory": ("", ""), "Send": OUT}, ("OS Credential Dumping: LSASS Memory", "Send")
    )
    assert found.scenario.stages[0].technique == "T1003.001"
    assert "technique by name" in kinds(found)


def test_renamed_techniques_lead_to_those_of_the_pinned_table() -> None:
    known = attack.techniques()
    assert len(attack.renamed()) > 130
    assert not set(attack.renamed()) & set(known)
    assert set(attack.renamed().values()) <= set(known)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_the_last_loss_ends_the_attack() -> None:
    nodes = {"Phish": PHISH, "Send": OUT, "Lock": LOCK, "Clean up": ("TA0005", "T1070.004")}
    found = simple(nodes, ("Phish", "Send", "Lock", "Clean up"))
    assert [(x.id, x.loss) for x in found.scenario.stages] == [("phish", None), ("send", None), ("lock", "impact")]
    assert {"earlier loss", "after the loss"} <= kinds(found)


def test_a_flow_without_a_loss_gets_one() -> None:
    found = simple({"Phish": PHISH, "Run": RUN, "Dump": DUMP}, ("Phish", "Run", "Dump"))
    last = found.scenario.stages[-1]
    assert (last.id, last.technique, last.prerequisites, last.loss) == ("exfiltration", "T1041", ("dump",), "exfil")
    assert "id" in last.assumed[0].fields
    assert "loss assumed" in kinds(found)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_times_of_the_flow_are_in_ticks_of_30_minutes() -> None:
    data = stix({"Phish": PHISH, "Run": RUN, "Send": OUT}, chain("Phish", "Run", "Send"))
    action = next(x for x in data["objects"] if x.get("name") == "Run")
    action |= {"execution_start": "2026-03-01T10:00:00.000Z", "execution_end": "2026-03-01T15:00:00Z"}
    run = imported(data).scenario.stages[1]
    assert run.dwell == (10, 10)
    assert all("dwell" not in a.fields for a in run.assumed)
    for start, end in (
        ("2026", ""),
        ("never", "2026-03-01T15:00:00Z"),
        ("2026-03-02T10:00:00Z", "2026-03-01T10:00:00Z"),
    ):
        action |= {"execution_start": start, "execution_end": end}
        assert any("dwell" in a.fields for a in imported(data).scenario.stages[1].assumed)


def test_the_time_of_the_whole_attack_may_be_given() -> None:
    dwell = [x.dwell for x in imported(stix(), minutes=8 * 30 * 4).scenario.stages]
    assert dwell == [(2, 6)] * 8
    with pytest.raises(ValueError, match="minutes = 0 is not possible; give 1 to 300000"):
        imported(stix(), minutes=0)


def test_settings_are_ordered() -> None:
    low, mid, high = (imported(stix(), prior=prior).scenario for prior in priors.SETTINGS)
    for a, b, c in zip(low.stages, mid.stages, high.stages, strict=True):
        assert a.dwell < b.dwell < c.dwell
        assert a.success > b.success > c.success
        assert a.detection < b.detection < c.detection
        assert a.lag > b.lag > c.lag
    with pytest.raises(
        ValueError, match="prior = 'middling' is unknown; choose one of pessimistic, central, optimistic"
    ):
        imported(stix(), prior="middling")


def test_priors_say_where_they_come_from() -> None:
    cited = set()

    def walk(node: Any) -> None:
        if isinstance(node, list):
            cited.add(node[-1])
        elif isinstance(node, dict):
            for value in node.values():
                walk(value)

    walk({name: part for name, part in priors.table().items() if name != "sources"})
    assert cited == set(priors.sources())
    told = priors.table()["alerted"]
    assert set(told["tactics"]) <= set(attack.tactics())
    assert set(told["techniques"]) <= set(attack.techniques())


def test_detection_is_of_the_technique_or_else_of_the_tactic() -> None:
    for technique, tactic, rate in (("T1083", "TA0007", 0.05), ("T1003", "TA0006", 0.27), ("T1505", "TA0003", 0.23)):
        strength = priors.detection(tactic, technique, "central").value
        assert 1 - (1 - strength) ** 2 == pytest.approx(rate, abs=1e-3)  # of two draws one alerts
    assert priors.detection("TA0007", "T1069.002", "central") == priors.detection("TA0007", "T1069", "central")


# --- played -----------------------------------------------------------------------------------------------------------

TREE = {"Phish": PHISH, "Run": RUN, "Dump": DUMP, "Move": MOVE, "Stop the backups": ("TA0040", "T1490"), "Lock": LOCK}
PLAYED = {
    "two ways": stix(),
    "ransomware": builder(TREE, chain(*TREE)),
    "no loss": stix({"Phish": PHISH, "Run": RUN, "Dump": DUMP}, chain("Phish", "Run", "Dump")),
}


def losses(s: scenarios.Scenario, policy: Policy, rules: Rules, episodes: int = 30) -> float:
    """The share of episodes that end in the loss, under each personality in turn."""
    rng = random.Random(0)
    who = ("stealthy", "aggressive", "opportunistic")
    played = [episode(s, who[i % 3], policy, REWARDS["linear"], rng, rules) for i in range(episodes)]
    return sum(result["exfil"] for result in played) / episodes


@pytest.mark.parametrize("name", PLAYED)
def test_the_attacker_can_win_and_the_defender_can_stop_it(name: str) -> None:
    for prior, episodes in (("pessimistic", 60), ("central", 30), ("optimistic", 12)):
        s = imported(PLAYED[name], prior=prior).scenario
        compile_scenario(s, dims_of([s]))
        on_the_way = {x.asset for x in s.stages if x.loss}
        assert 0 < losses(s, monitor, CLASSIC, episodes) < 1
        assert losses(s, plan([(ISOLATE, asset) for asset in on_the_way]), CLASSIC, episodes) == 0
        if prior == "pessimistic":
            assert 0 < losses(s, monitor, HARDENED, episodes) < 1


def test_a_loss_is_called_what_it_is() -> None:
    for nodes, called in (({"Phish": PHISH, "Send": OUT}, "exfil"), ({"Phish": PHISH, "Lock": LOCK}, "impact")):
        s = simple(nodes, tuple(nodes)).scenario
        for status, found in (([SUCCEEDED, SUCCEEDED, BLOCKED], called), ([SUCCEEDED, IDLE, BLOCKED], None)):
            assert loss_name(s, np.asarray(status)) == found
        assert end_name(s, EXFIL, np.asarray([SUCCEEDED, SUCCEEDED])) == called
        assert end_name(s, HORIZON, np.asarray([SUCCEEDED, IDLE])) == "horizon"


def test_an_egress_block_stops_exfil_and_not_impact() -> None:
    for nodes, stopped in (({"Phish": PHISH, "Send": OUT}, True), ({"Phish": PHISH, "Lock": LOCK}, False)):
        s = simple(nodes, tuple(nodes)).scenario
        blocked = plan([("BLOCK_EGRESS", s.stages[-1].asset)])
        assert (losses(s, blocked, CLASSIC) == 0) == stopped


# --- there and back ---------------------------------------------------------------------------------------------------


def back(s: scenarios.Scenario) -> scenarios.Scenario:
    found = from_flow(parse_flow(export_flow(s)))
    assert not found.remarks
    return found.scenario


@pytest.mark.parametrize("name", [*FILES, *(f"{name}@raw" for name in FILES)])
def test_a_built_in_scenario_comes_back(name: str) -> None:
    assert back(scenarios.load(name)) == scenarios.load(name)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, MAX_SEED), st.integers(10, 60), st.sampled_from(SPLITS))
def test_a_generated_scenario_comes_back(seed: int, entities: int, split: str) -> None:
    s = generate(seed, entities, split)
    assert back(s) == s
    assert scenarios.digest(back(s)) == scenarios.digest(s)


def test_an_imported_scenario_comes_back_with_what_was_assumed() -> None:
    for data in PLAYED.values():
        s = imported(data).scenario
        assert s.sources and back(s) == s


def test_stages_in_any_order_and_a_single_alternative_come_back() -> None:
    data = json.loads(imported(stix()).scenario.model_dump_json())
    data["stages"].reverse()
    data["stages"][0]["any_prerequisites"] = data["stages"][0]["prerequisites"][:1]
    data["stages"][0]["prerequisites"] = data["stages"][0]["prerequisites"][1:]
    s = scenarios.Scenario.model_validate(data)
    assert back(s) == s


def test_a_line_that_is_drawn_anew_wins_over_what_the_export_noted() -> None:
    s = imported(stix()).scenario
    data = json.loads(export_flow(s))
    first, second = (x for x in data["objects"] if x.get("name") in ("Move by RDP", "Archive them"))
    first["effect_refs"].remove(second["id"])
    found = from_flow(parse_flow(text(data))).scenario
    assert next(x for x in found.stages if x.id == "archive-them").prerequisites == ()


def test_an_edited_export_without_values_is_refused() -> None:
    data = json.loads(export_flow(imported(stix()).scenario))
    action = next(x for x in data["objects"] if x.get("name") == "Move by RDP")
    values = action["extensions"].pop(SCENARIO)
    with pytest.raises(scenarios.ScenarioError, match="'Move by RDP' has none of its values; add them, or remove"):
        from_flow(parse_flow(text(data)))
    action["extensions"][SCENARIO] = values | {"dwell": [0, 5]}
    with pytest.raises(scenarios.ScenarioError, match=r"stages\[4\]\.dwell\[0\] \(move-by-rdp\): got 0"):
        from_flow(parse_flow(text(data)))


def test_the_flows_of_these_tests_have_both_operators_and_a_condition() -> None:
    assert {"AND", "OR", None} <= {node for node in NODES.values() if not isinstance(node, tuple)}
    assert flow_files.EDGES

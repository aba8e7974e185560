"""Exports of episodes: true to the game, valid for validators that we did not write, and no truth where none may be."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np
import pytest
from cells import ROUTINE, TOLERANCE
from hypothesis import given
from hypothesis import strategies as st
from parity import Reader, deal, named_action, on_an_edge, rows

import jaxsim
import scenarios
from jaxsim import twin, twin_rules
from jaxsim.one_episode import episode_keys, tick_noise
from jaxsim.response import NEVER
from jaxsim.rules import PERSONALITIES
from jaxsim.soc import export, navigator, ocsf, stix, validators
from jaxsim.soc.episodes import INVALID, Alert, Cause, Deed, Episode, episodes
from scenarios.imported import import_flow

SCENARIO = scenarios.loads(ROUTINE)
ENV, PARAMS = jaxsim.make(SCENARIO)
KEY, MANY = jax.random.key(3), 96
SITE = ocsf.make_site(SCENARIO, "dice", "test", datetime(2026, 1, 1, tzinfo=UTC), "0")


def dice() -> np.ndarray:
    """Plans of chance: the defender acts at every second tick, now and then in vain."""
    rng = np.random.default_rng(0)
    plans = rng.integers(-1, ENV.num_actions, (MANY, SCENARIO.horizon))
    plans[rng.random(plans.shape) < 0.5] = 0
    return plans.astype(np.int32)


PLANS = dice()


@pytest.fixture(scope="module")
def played() -> list[Episode]:
    return list(episodes(SCENARIO, ENV, PARAMS, KEY, 0, PLANS))


def lines(name: str, many: list[Episode], site: ocsf.Site = SITE) -> list[dict[str, Any]]:
    return [line for one in many for line in export.FORMATS[name].lines(site, one)]


# --- true to the game -----------------------------------------------------------------------------------------------


class Tagged(str):
    """A signal that knows whose it is."""

    cause: Cause


def tagged(activity: Any, kind: Any) -> Any:
    signal = Tagged(activity.signal)
    signal.cause = Cause(kind, activity.id)
    return activity.model_copy(update={"signal": signal})


def test_alerts_causes_and_steps_are_those_of_the_twin(played: list[Episode]) -> None:
    """The twin is told whose signal is whose; its alerts carry that along."""
    keys = episode_keys(KEY, MANY)
    first = rows(jax.tree.map(np.asarray, deal(ENV.dims, PARAMS, keys)), MANY)
    blocks = np.asarray(jax.jit(jax.vmap(lambda k: jax.vmap(lambda t: tick_noise(k, t))(np.arange(1, 37))))(keys))
    kinds = set()
    compared = 0
    for one, state, noise, plan in zip(played, first, blocks, PLANS, strict=True):
        draws = [twin_rules.Draws._make(row) for row in noise.tolist()]
        if any(on_an_edge(SCENARIO, twin_rules.PERSONALITIES[one.personality], u) for u in draws[: one.ticks]):
            continue  # where single and double precision may part ways
        theirs = Reader(SCENARIO, one.personality, ENV.dims).reset(state, twin_rules.HARDENED)
        theirs.stages = {name: tagged(stage, "stage") for name, stage in theirs.stages.items()}
        theirs.benign = [tagged(activity, "benign") for activity in theirs.benign]
        seen: list[tuple[Any, ...]] = []
        results: list[tuple[Any, ...]] = []
        kept: list[Any] = []  # so that no id is used twice
        begun: dict[str, list[int]] = {}
        for u, action in zip(draws, plan, strict=True):
            before, old = {id(x) for x in (*theirs.alerts, *theirs.forensics)}, theirs.current
            twin.step(theirs, named_action(SCENARIO, ENV.dims, int(action)), u)
            for x in theirs.alerts:
                if id(x) not in before:
                    cause = x.signal.cause if isinstance(x.signal, Tagged) else Cause("background", None)
                    seen.append((len(seen), x.visible, str(x.signal), x.asset, x.identity, cause, x.severity))
            results += [(x.tick, x.target, x.verdict, x.confidence) for x in theirs.forensics if id(x) not in before]
            if theirs.current is not None and theirs.current is not old and not theirs.left.get(theirs.current.id):
                begun.setdefault(theirs.current.id, []).append(theirs.tick)
            kept += (*theirs.alerts, *theirs.forensics)
        ours = [(a[:-1], c, a.severity) for a, c in zip(one.alerts, one.causes, strict=True)]
        assert ours == [(x[:5], x[5], pytest.approx(x[6], abs=TOLERANCE)) for x in seen]
        verdict = {True: "compromised", False: "clean"}
        told = [(d.tick, d.target, verdict[d.verdict], d.confidence) for d in one.deeds if d.verdict is not None]
        assert told == [(*x[:3], pytest.approx(x[3], abs=TOLERANCE)) for x in results]
        kinds |= {x[5] for x in seen}
        done = {x.stage.id for x in one.steps if x.outcome == "succeeded"}
        assert done == {name for name, status in theirs.status.items() if status == "succeeded"}
        assert {x.stage.id for x in one.steps} == set(begun) and (not begun or one.attack)
        assert all(x.begun[0] == begun[x.stage.id][0] and x.begun[-1] <= one.ticks for x in one.steps)
        compared += 1
    assert compared > MANY / 2
    assert kinds > {Cause("benign", x.id) for x in SCENARIO.benign} | {Cause("background", None)}
    assert len({x.id for x in kinds if x.kind == "stage"}) > 4


def test_deeds_are_those_of_the_plan(played: list[Episode]) -> None:
    for one in played:
        texts = [jaxsim.action_text(int(a), SCENARIO, ENV.dims) for a in PLANS[one.number][: one.ticks]]
        said = [(d.tick, f"{d.verb} {d.target}" if d.target else d.verb) for d in one.deeds]
        assert said == [(t, text) for t, text in enumerate(texts, 1) if text != "MONITOR"]
        acted = [d for d in one.deeds if d.verb not in ("INVESTIGATE", "RESTORE", INVALID)]
        assert one.containments == len(acted) >= one.false_containments + one.evidence_backed
        assert not any(d.rebuilt and d.verb != "PATCH_ASSET" for d in one.deeds)
    assert any(d.rebuilt for one in played for d in one.deeds) and any(one.evidence_backed for one in played)


def test_what_would_happen_unopposed_is_what_happens_when_nobody_acts(played: list[Episode]) -> None:
    idle = list(episodes(SCENARIO, ENV, PARAMS, KEY, 0, np.zeros_like(PLANS)))
    for one, other in zip(idle, played, strict=True):
        assert set(one.unopposed) == {x.stage.id for x in one.steps if x.outcome == "succeeded"} == set(other.unopposed)
        assert not one.deeds and one.response.detected == NEVER
    assert any(one.unopposed for one in idle)


# --- valid ----------------------------------------------------------------------------------------------------------


def test_exports_pass_the_validators_of_others(played: list[Episode]) -> None:
    events = [*lines("alerts", played[:12]), *lines("actions", played[:24]), *lines("incidents", played[:48])]
    assert [x for event in events for x in validators.ocsf(event)] == []
    assert {x["class_uid"] for x in events} == {2004, 2005, 7001, 7004}
    assert {x["activity_id"] for x in events if x["class_uid"] == 7001} == {1, 2, 3, 4, 5, 99}
    assert {x["verdict_id"] for x in events if x["class_uid"] == 2005} == {1, 2}
    assert len({x["metadata"]["uid"] for x in events}) == len(events)
    bundles = lines("stix", played)
    assert [x for bundle in bundles[:4] for x in validators.stix(bundle)] == []
    assert [x for bundle in bundles[:8] for x in validators.attack_flow(bundle)] == []
    layers = [navigator.campaign(SCENARIO), stopped(played)]
    assert [x for layer in layers for x in validators.navigator(layer)] == []


def test_the_validators_find_what_is_wrong(played: list[Episode]) -> None:
    alert = lines("alerts", played[:1])[0]
    assert validators.ocsf(alert | {"severity_id": 7}) and validators.ocsf(alert | {"stage": "lure"})
    assert validators.ocsf({k: v for k, v in alert.items() if k != "finding_info"})
    bundle = lines("stix", played)[0]
    for wrong in ({"effect_refs": ["attack-action--x"]}, {"name": 3}):
        objects = [x | wrong if x["type"] == "attack-action" else x for x in bundle["objects"]]
        assert validators.attack_flow(bundle | {"objects": objects})
    objects = [{k: v for k, v in x.items() if k != "created"} for x in bundle["objects"]]
    assert validators.stix(bundle | {"objects": objects})
    layer = navigator.campaign(SCENARIO)
    unknown = {"techniqueID": "X1", "score": 1}
    assert validators.navigator(layer | {"techniques": [*layer["techniques"], unknown]})


def test_an_incident_can_be_imported_as_a_scenario(played: list[Episode], tmp_path: Any) -> None:
    one = max(played, key=lambda x: len(x.steps))
    (tmp_path / "a.json").write_text(json.dumps(stix.bundle(SITE, one)))
    made = import_flow(tmp_path / "a.json").scenario
    assert {(x.technique, x.asset) for x in made.stages} >= {(x.stage.technique, x.asset) for x in one.steps if x.asset}


def test_countermeasures_are_there_for_every_verb_and_no_other() -> None:
    verbs = {jaxsim.action_text(a, SCENARIO, ENV.dims).partition(" ")[::2] for a in range(1, ENV.num_actions)}
    identities = {x.id for x in SCENARIO.identities}
    assert {(verb, target in identities) for verb, target in verbs} == set(ocsf.COUNTERMEASURES)
    everything = [*ocsf.COUNTERMEASURES.values(), ocsf.DISK_IMAGE]
    assert all(re.fullmatch("D3-[A-Z]{2,4}", x[2]) and x[4] == x[3].replace(" ", "") for x in everything)
    tactics = {1: "Isolate", 2: "Evict", 3: "Restore", 4: "Harden", 5: "Detect"}
    assert all(tactics[x[0]] == x[1] for x in everything)


# --- no truth -------------------------------------------------------------------------------------------------------

NAMES = [x.id for x in (*SCENARIO.assets, *SCENARIO.identities)]
ALERTS = st.builds(
    Alert,
    number=st.integers(0, 10_000),
    tick=st.integers(1, 10_000),
    signal=st.sampled_from(scenarios.SIGNALS),
    asset=st.none() | st.sampled_from([x.id for x in SCENARIO.assets]),
    identity=st.none() | st.sampled_from([x.id for x in SCENARIO.identities]),
    severity=st.floats(0, 1, width=32),
)


@given(ALERTS, st.integers(0, 10**6))
def test_an_alert_says_what_the_defender_saw_and_no_more(alert: Alert, episode: int) -> None:
    event = json.loads(json.dumps(ocsf.alert(SITE, episode, alert)))
    named = [x["uid"] for x in event["resources"]]
    assert alert == Alert(
        event["metadata"]["sequence"],
        (event["time"] - SITE.millis(0)) // 1_800_000,
        event["finding_info"]["title"],
        next((x for x in named if x in {a.id for a in SCENARIO.assets}), None),
        next((x for x in named if x in {i.id for i in SCENARIO.identities}), None),
        event["unmapped"]["severity"],
    )
    assert validators.ocsf(event) == []


CAUSES = [Cause("background", None), *(Cause("stage", x.id) for x in SCENARIO.stages)]
CAUSES += [Cause("benign", x.id) for x in SCENARIO.benign]


@given(st.data())
def test_files_of_what_was_seen_do_not_depend_on_what_is_true(played: list[Episode], data: st.DataObject) -> None:
    """Another truth behind the same alerts and actions, and another campaign in the same network: the same bytes."""
    one, other = data.draw(st.sampled_from(played)), data.draw(st.sampled_from(played))
    causes = data.draw(st.lists(st.sampled_from(CAUSES), min_size=len(one.alerts), max_size=len(one.alerts)))
    lie = other._replace(number=one.number, alerts=one.alerts, deeds=one.deeds, causes=tuple(causes))
    stages = data.draw(st.permutations(SCENARIO.stages))
    elsewhere = SITE._replace(scenario=SCENARIO.model_copy(update={"stages": tuple(stages), "title": "x", "id": "y"}))
    for name in ("alerts", "actions"):
        assert lines(name, [lie], elsewhere) == lines(name, [one])
    assert lines("truth", [lie]) != lines("truth", [one]) or causes == list(one.causes)


def test_no_word_of_the_truth_is_in_what_was_seen(played: list[Episode]) -> None:
    text = json.dumps([*lines("alerts", played[:32]), *lines("actions", played[:32])])
    secret = {SCENARIO.id, SCENARIO.title, *PERSONALITIES, "malicious", "stage", "benign", "attack_probability"}
    for x in (*SCENARIO.stages, *SCENARIO.benign):
        secret |= {f'"{x.id}"', f'"{x.name}"'}
    assert not [word for word in secret if word in text] and not re.search(r"\bT\d{4}\b", text)
    assert all(f'"{name}"' in text for name in NAMES)


def test_alerts_of_one_look_are_alike_whatever_raised_them(played: list[Episode]) -> None:
    """Once number, time and severity are taken away, a look has one form, true alert or not."""
    forms: dict[Any, set[str]] = {}
    raised: dict[Any, set[bool]] = {}
    for one in played:
        for alert, cause in zip(one.alerts, one.causes, strict=True):
            look = (alert.signal, alert.asset, alert.identity)
            form = json.dumps(ocsf.alert(SITE, 0, alert._replace(number=0, tick=0, severity=0.5)))
            forms.setdefault(look, set()).add(form)
            raised.setdefault(look, set()).add(cause.kind == "stage")
    assert all(len(x) == 1 for x in forms.values()) and sum(x == {True, False} for x in raised.values()) > 5


# --- layers and reports ---------------------------------------------------------------------------------------------


def stopped(many: list[Episode]) -> navigator.Layer:
    tallies: dict[navigator.Pair, navigator.Tally] = {}
    for one in many:
        navigator.tally(tallies, SCENARIO, one)
    return navigator.stopped(SCENARIO, "dice", tallies)


def test_the_layer_of_what_was_stopped(played: list[Episode]) -> None:
    """T1041 is of two stages: it happened if one of them did."""
    none = played[0]._replace(steps=(), unopposed=("gather", "send"))
    done = next(x for one in played for x in one.steps if x.outcome == "succeeded" and x.stage.id == "gather")
    post = done._replace(stage=SCENARIO.stages[-1])
    many = [none, none._replace(steps=(done,)), none._replace(steps=(post,)), none._replace(unopposed=())]
    scores = {x["techniqueID"]: (x.get("score"), x["comment"]) for x in stopped(many)["techniques"]}
    assert scores["T1213"] == (67, "stopped in 2 of 3 episodes") and scores["T1041"][0] == 67
    assert scores["T1190"] == (None, "never comes to it") and len(scores) == 7
    assert sum(x["score"] for x in navigator.campaign(SCENARIO)["techniques"]) == len(SCENARIO.stages)


def test_incidents_say_how_it_went(played: list[Episode]) -> None:
    for one in played:
        incident = ocsf.incident(SITE, one)
        if incident is None:
            assert not one.steps and not one.containments
            continue
        assert (incident["verdict"] == "True Positive") == bool(one.steps) == one.attack or not one.steps
        assert incident["unmapped"]["false_containments"] == one.false_containments
        assert incident["is_suspected_breach"] == (one.end == "exfil")
        found = [y["uid"] for x in incident["finding_info_list"] for y in x.get("related_events", [])]
        true = [x["uid"] for x in lines("truth", [one]) if x["malicious"]]
        assert sorted(found) == sorted(true) or not one.steps
    assert len({(ocsf.incident(SITE, one) or {}).get("status") for one in played}) > 2


def test_an_action_that_is_none_has_failed() -> None:
    event = ocsf.action(SITE, 0, Deed(1, "INVALID", None, False, False, None, None))
    assert event["status"] == "Failure" and validators.ocsf(event) == []


def test_bad_arguments_are_named() -> None:
    for name, wrong in {"scenario": None, "env_": ENV.dims, "params": (), "key": 0, "plans": [0]}.items():
        arguments = {"scenario": SCENARIO, "env_": ENV, "params": PARAMS, "key": KEY, "plans": PLANS} | {name: wrong}
        with pytest.raises(ValueError, match=f"^{name} = "):
            next(episodes(**arguments, first=0))  # type: ignore[arg-type]

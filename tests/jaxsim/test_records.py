"""Names of actions, plans and replay records: what error messages say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from two_ways import DIMS, TWO_WAYS

from jaxsim import names, reward
from jaxsim.replays import load_record, play_record
from jaxsim.types import EXFIL
from jaxsim.version import SIMULATOR_VERSION


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "verb '' is unknown; choose one of MONITOR, INVESTIGATE, .*REVOKE_IDENTITY"),
        (
            "RESTORE store",
            r"verb 'RESTORE' is none under these rules; add \+liftable to them, or choose one of MONITOR",
        ),
        ("isolate_asset store", "verb 'isolate_asset' is unknown; did you mean ISOLATE_ASSET\\?"),
        ("MONITOR store", "MONITOR takes no target; leave out 'store'"),
        ("PATCH_ASSET", r"PATCH_ASSET takes exactly one target, as in 'PATCH_ASSET assets\[0\]'"),
        ("PATCH_ASSET store lamp", "PATCH_ASSET takes exactly one target"),
        ("ISOLATE_ASSET ann", "ISOLATE_ASSET takes an asset, which 'ann' is not"),
        ("REVOKE_IDENTITY store", "REVOKE_IDENTITY takes an identity, which 'store' is not"),
        ("INVESTIGATE stor", "two-ways has no entity 'stor'; did you mean 'store'\\?"),
        ("INVESTIGATE qqqq", "has no entity 'qqqq'; it has web-server, store, lamp, ann"),
        ("PATCH_ASSET assets[3]", r"assets\[3\] is out of range; two-ways has 3 assets"),
        ("REVOKE_IDENTITY identities[1]", r"identities\[1\] is out of range; two-ways has 1 identities"),
    ],
)
def test_a_bad_action_is_named_with_a_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"action {re.escape(repr(text))}: .*{says}"):
        names.parse_action(text, TWO_WAYS, DIMS)


def test_restore_is_a_verb_where_the_rules_bring_it() -> None:
    dims = DIMS._replace(restore=True)
    action = names.parse_action("RESTORE ann", TWO_WAYS, dims)
    assert action == DIMS.actions + DIMS.assets and names.action_text(action, TWO_WAYS, dims) == "RESTORE ann"
    with pytest.raises(ValueError, match="verb 'RESTOR' is unknown; did you mean RESTORE\\?"):
        names.parse_action("RESTOR ann", TWO_WAYS, dims)


def test_a_bad_plan_is_named_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="the plan is empty; write actions separated by ';'"):
        names.parse_plan(" ; ", TWO_WAYS, DIMS)
    with pytest.raises(ValueError, match=r"action 'PATCH store': verb 'PATCH' is unknown; did you mean PATCH_ASSET\?"):
        names.parse_plan("MONITOR;PATCH store", TWO_WAYS, DIMS)
    plan = names.parse_plan("MONITOR; ISOLATE_ASSET store;", TWO_WAYS, DIMS)
    assert [names.action_text(a, TWO_WAYS, DIMS) for a in plan] == ["MONITOR", "ISOLATE_ASSET store"]


RECORD = {
    "version": SIMULATOR_VERSION,
    "scenario": "supply_chain_token_drift",
    "rules": "classic",
    "reward": "evidence",
    "personality": "stealthy",
    "seed": 1,
    "episode": 0,
    "actions": ["MONITOR", "ISOLATE_ASSET ci-runner-01"],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "one"}, "seed = 'one': wrong type; give a whole number"),
        ({"seed": True}, "seed = True: wrong type; give a whole number"),
        ({"seed": 2**32}, "seed = 4294967296: out of range; give one from 0 to 4294967295"),
        ({"seed": -1}, "seed = -1: out of range; give one from 0 to 4294967295"),
        ({"seed": 2**70}, f"seed = {2**70}: out of range; give one from "),
        ({"episode": -1}, "episode = -1: out of range; give one from 0 to 4294967295"),
        ({"scenario": None}, "scenario = None: wrong type; give a built-in name or the path"),
        ({"reward": 5}, "reward = 5: wrong type; give the name of a preset, or all weights"),
        ({"actions": "MONITOR"}, "actions = 'MONITOR': wrong type; give a list of texts"),
        ({"actions": ["MONITOR", 3]}, r"actions\[1\] = 3: wrong type; give text, such as 'MONITOR'"),
        ({"version": "0"}, "version = '0': recorded by another version .*replay it with that version"),
    ],
)
def test_a_bad_record_is_named_with_a_remedy(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = write(tmp_path, RECORD | change)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {says}"):
        load_record(path)


@pytest.mark.parametrize(
    ("version", "rules", "paid", "now"),
    [
        ("1", "hardened", "operational", ("hardened1", "operational1")),
        ("1", "hardened-persistence+foothold", "evidence", ("hardened1-persistence+foothold", "evidence")),
        ("1", "classic+persistence", reward.PRESETS["operational1"], ("classic+persistence",)),
        ("2", "hardened+severe_background", "operational", ("hardened2+severe_background", "operational")),
        ("3", "hardened", "operational", ("hardened", "operational")),
    ],
)
def test_a_record_keeps_its_game(tmp_path: Path, version: str, rules: str, paid: Any, now: tuple[str, ...]) -> None:
    record = load_record(write(tmp_path, RECORD | {"version": version, "rules": rules, "reward": paid}))
    assert (record["rules"], record["reward"])[: len(now)] == now and record["version"] == SIMULATOR_VERSION
    assert isinstance(paid, str) or record["reward"] == paid


@pytest.mark.parametrize("field", RECORD)
def test_a_field_left_out_is_named(tmp_path: Path, field: str) -> None:
    path = write(tmp_path, {k: v for k, v in RECORD.items() if k != field})
    with pytest.raises(ValueError, match=f"record.json: field '{field}' is missing; a record has version, scenario"):
        load_record(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '"text"'])
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match=r"record\.json: .*replay record"):
        load_record(write(tmp_path, content))
    with pytest.raises(ValueError, match=r"absent\.json: not a readable JSON replay record"):
        load_record(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scenario": "nonesuch"}, "nonesuch: is not the name of a built-in scenario"),
        ({"rules": "nonesuch"}, "rules 'nonesuch' are unknown; choose one of classic"),
        ({"reward": "nonesuch"}, "reward 'nonesuch' is unknown; choose one of capped"),
        ({"reward": {}}, "reward weight 'detection' is missing; give all of"),
        ({"personality": "nonesuch"}, "personality 'nonesuch' is unknown; choose one of stealthy"),
        ({"actions": ["WAIT"]}, "action 'WAIT': verb 'WAIT' is unknown; choose one of"),
    ],
)
def test_a_record_of_unknown_names_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        play_record(load_record(write(tmp_path, RECORD | change)))


def test_a_record_is_played(tmp_path: Path) -> None:
    """The early isolation of the first asset earns 7.302 in any episode; INVALID stands for an invalid action."""
    scenario, _, played = play_record(load_record(write(tmp_path, RECORD)))
    assert scenario.id == RECORD["scenario"]
    assert played.reward.sum() == pytest.approx(7.302, abs=1e-5)
    _, _, played = play_record(load_record(write(tmp_path, RECORD | {"actions": ["INVALID", "MONITOR"]})))
    assert played.reward.tolist() == [pytest.approx(-0.6), 0.0]


def test_the_episode_of_the_page_on_the_certificate_is_whole() -> None:
    """Watched, investigated, confirmed, contained, rebuilt and restored, in that order; what stays taken is held."""
    root = Path(__file__).parents[2]
    scenario, env, played = play_record(load_record(root / "docs" / "lifecycle.json"))
    at = [a.id for a in scenario.assets].index("egress-proxy")
    compromised = played.state.compromised[:, at]
    done: dict[str, list[int]] = {}
    for tick, action in enumerate(played.action, 1):
        done.setdefault(names.action_text(int(action), scenario, env.dims), []).append(tick)
    assert int(compromised.argmax()) == 17 and done["INVESTIGATE egress-proxy"] == [17, 18, 19, 20]
    # All three containments are of what was confirmed; evidence is paid for once a target.
    assert played.signals.evidence_backed.sum() == played.signals.containments.sum() == 3
    assert played.signals.evidence_paid.sum() == 2 and not played.signals.false_positives.any()
    assert not played.signals.recontained.any()
    assert done["ISOLATE_ASSET egress-proxy"] == [21] and compromised[21]
    assert done["PATCH_ASSET egress-proxy"] == [22] and not compromised[22]
    assert done["RESTORE egress-proxy"][0] == 23 and not compromised[22:].any() and played.state.end[-1] != EXFIL
    assert done["INVESTIGATE u-platform-eng"] == [41] and done["REVOKE_IDENTITY u-platform-eng"] == [42]
    assert not any(name.startswith("RESTORE u-") for name in done)

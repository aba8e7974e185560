"""Scenario files that are good, round trips, and any input at all."""

import json
from pathlib import Path

import jsonschema
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_files import BACKUP, FILES, GOOD, HARDENED, NAMES, as_yaml, base, read, word

import scenarios
from scenarios import attack
from scenarios.model import DEFAULT_SIGNALS
from scenarios.read import plain

# --- good files -------------------------------------------------------------------------------------------------------


def test_every_tactic_has_a_signal() -> None:
    assert set(DEFAULT_SIGNALS) == set(attack.tactics())


@pytest.mark.parametrize(
    ("tactic", "technique", "signal"),
    [
        ("TA0001", "T1190", "auth_anomaly"),
        ("TA0006", "T1528", "auth_anomaly"),
        ("TA0008", "T1072", "lateral_movement"),
        ("TA0002", "T1072", "lateral_movement"),
        ("TA0009", "T1213", "data_staging"),
        ("TA0007", "T1087", "data_staging"),
        ("TA0010", "T1041", "egress_anomaly"),
        ("TA0011", "T1071", "egress_anomaly"),
        ("TA0040", "T1486", "data_staging"),
        ("TA0112", "T1685", "lateral_movement"),
    ],
)
def test_default_signals(tactic: str, technique: str, signal: str) -> None:
    data = base()
    data["stages"][0] |= {"tactic": tactic, "technique": technique}
    assert read(data).stages[0].signal == signal


def test_signal_order_is_part_of_the_interface() -> None:
    assert scenarios.SIGNALS == (
        "auth_anomaly",
        "lateral_movement",
        "data_staging",
        "egress_anomaly",
        "background_noise",
    )


def test_a_scenario_may_have_no_identities() -> None:
    data = base()
    del data["identities"]
    data["stages"] = [data["stages"][2] | {"prerequisites": []}]
    assert read(data).identities == ()


def test_branching_graphs() -> None:
    data = base()
    phish, collect, exfil = data["stages"]
    spray = phish | {"id": "spray", "technique": "T1190"}
    gather = collect | {"id": "gather", "prerequisites": [], "any_prerequisites": ["phish", "spray"]}
    both = collect | {"id": "both", "prerequisites": ["phish", "spray"], "any_prerequisites": ["gather"]}
    out = exfil | {"prerequisites": ["both"]}
    other_way_out = exfil | {"id": "other-way-out", "prerequisites": [], "any_prerequisites": ["gather"]}
    data["stages"] = [out, other_way_out, both, gather, spray, phish]  # the order need not follow the graph
    s = read(data)
    assert [stage.id for stage in s.stages] == ["exfil", "other-way-out", "both", "gather", "spray", "phish"]
    assert s.stages[3].any_prerequisites == ("phish", "spray")
    assert scenarios.loads(scenarios.dump(s)) == s


def test_one_bad_choice_among_any_prerequisites_is_fine() -> None:
    data = base()
    hopeless = data["stages"][0] | {"id": "hopeless", "success": 0}
    data["stages"][1] |= {"prerequisites": [], "any_prerequisites": ["hopeless", "phish"]}
    data["stages"].append(hopeless)
    assert read(data).stages[3].success == 0


def test_benign_activities() -> None:
    reset = {"id": "reset", "name": "Reset", "identity": "alice", "rate": 0.2, "strength": 1, "signal": "auth_anomaly"}
    s = read(base() | {"benign": [BACKUP, reset | {"asset": "web"}, reset | {"id": "phish"}]})  # a stage's id is fine
    assert [benign.id for benign in s.benign] == ["backup", "reset", "phish"]
    assert [benign.asset for benign in s.benign] == ["web", "web", None]
    assert [benign.identity for benign in s.benign] == [None, "alice", "alice"]
    assert [benign.rate for benign in s.benign] == [0.1, 0.2, 0.2]
    assert (s.benign[1].strength, s.benign[1].signal) == (1.0, "auth_anomaly")
    assert scenarios.loads(scenarios.dump(s)) == s


def test_benign_activities_may_be_left_out() -> None:
    s = read(base())
    assert s.benign == () and s.format == 1
    assert read(base() | {"benign": []}) == s
    assert "benign" not in scenarios.dump(s)


def test_rates_may_add_up_to_just_one() -> None:
    more = [BACKUP | {"id": f"b{i}", "rate": rate} for i, rate in enumerate((0.4, 0.3, 0.1))]
    assert 0.2 + 0.4 + 0.3 + 0.1 > 1  # if added one after the other
    assert len(read(base() | {"noise_rate": 0.2, "benign": more}).benign) == 3
    with pytest.raises(scenarios.ScenarioError, match=r"add up to 1\.001, but at most one such alert"):
        read(base() | {"noise_rate": 0.201, "benign": more})


def test_a_loss_may_be_an_impact_and_needs_no_asset() -> None:
    data = base()
    data["stages"][2] |= {"exfil": False, "impact": True, "tactic": "TA0040", "technique": "T1486"}
    s = read(data)
    assert [stage.loss for stage in s.stages] == [None, None, "impact"]
    assert scenarios.loads(scenarios.dump(s)) == s
    del data["stages"][2]["asset"]
    assert read(data | {"stages": [*data["stages"][:2], data["stages"][2] | {"identity": "alice"}]}).stages[2].impact


@pytest.mark.parametrize(
    ("time", "ticks"),
    [("30 min", 1), ("90min", 3), ("1 min", 1), ("44 min", 1), ("45 min", 2), ("1.5 h", 3), ("2 d", 96), (7, 7)],
)
def test_times_become_the_nearest_ticks(time: str | int, ticks: int) -> None:
    data = base() | {"horizon": "2 d"}
    data["stages"][0] |= {"dwell": [time, "2 d"], "lag": ["10 min", time if time != "2 d" else 1]}
    jsonschema.validate(data, scenarios.Scenario.model_json_schema())
    made = read(data)
    stage = made.stages[0]
    assert (made.horizon, stage.dwell, stage.lag[0]) == (96, (ticks, 96), 0)
    assert scenarios.loads(scenarios.dump(made)) == made


def test_what_is_assumed_stays_in_the_file_and_is_no_part_of_the_game() -> None:
    data = base()
    note = [{"source": "siem", "fields": ["dwell", "success"]}, {"source": "guess", "fields": ["name"]}]
    data["stages"][1]["assumed"] = data["stages"][2]["assumed"] = note
    data["assets"][0]["assumed"] = [{"source": "guess", "fields": ["id", "kind"]}]
    data["assumed"] = [{"source": "guess", "fields": ["horizon", "noise_rate"]}]
    data["sources"] = [{"id": "siem", "text": "Measured in our SIEM"}, {"id": "guess", "text": "A guess"}]
    s = read(data)
    assert s.stages[1].assumed[0].fields == ("dwell", "success")
    assert scenarios.loads(scenarios.dump(s)) == s
    assert scenarios.loads(json.dumps(s.model_dump(mode="json")), "a.json") == s
    assert s != read(base()) and scenarios.digest(s) == scenarios.digest(read(base()))
    assert scenarios.renamed(s).stages[1].assumed == s.stages[1].assumed
    assert hash(s) != hash(read(base()))


def test_the_example_in_the_package_docstring_is_valid() -> None:
    doc = scenarios.__doc__ or ""
    example = doc[doc.index("    format: 1") : doc.index("`python -m scenarios new")]
    assert scenarios.loads(example).id == "one-step"


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json", "YAML"])
def test_files_load(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    text = json.dumps(base(), indent="\t") if suffix == "json" else as_yaml(base())
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # some editors begin a file with a byte order mark
    assert scenarios.load(path) == scenarios.load(str(path)) == read(base())


def test_json_reads_what_yaml_would_not() -> None:
    data = base() | {"title": "smile \U0001f600", "noise_rate": 1e-05}
    s = scenarios.loads(json.dumps(data), source="a.json")
    assert (s.title, s.noise_rate) == ("smile \U0001f600", 1e-05)


def test_quotes_and_core_tags_make_text() -> None:
    data = as_yaml(base())
    for written in ('"no"', "'no'", "!!str no"):
        s = scenarios.loads(data.replace("id: alice", f"id: {written}").replace("y: alice", f"y: {written}"))
        assert s.identities[0].id == "no"


def test_whole_numbers_are_fine_where_a_fraction_is_wanted() -> None:
    s = read(base() | {"noise_rate": 1})
    assert s.noise_rate == 1.0 and isinstance(s.noise_rate, float)


def test_models_are_frozen_and_checked_in_code() -> None:
    s = scenarios.load(NAMES[0])
    with pytest.raises(pydantic.ValidationError):
        s.horizon = 3  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="no stage has `exfil: true`"):
        scenarios.Scenario.model_validate(s.model_dump() | {"stages": s.model_dump()["stages"][:1]})
    assert hash(s) == hash(scenarios.loads(scenarios.dump(s)))


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_dump_round_trip(name: str) -> None:
    s = scenarios.load(name)
    assert scenarios.loads(scenarios.dump(s)) == s
    assert scenarios.Scenario.model_validate(yaml.safe_load(scenarios.dump(s))) == s  # other readers agree


@pytest.mark.parametrize("name", FILES)
def test_a_digest_is_of_the_content_and_of_nothing_else(name: str) -> None:
    s = scenarios.load(name)
    text = "# by hand\n" + yaml.safe_dump(s.model_dump(mode="json"), sort_keys=True)
    assert scenarios.digest(scenarios.loads(text)) == scenarios.digest(s)
    assert scenarios.digest(scenarios.loads(s.model_dump_json(), source="a.json")) == scenarios.digest(s)
    for changes in ({"noise_rate": s.noise_rate / 2}, {"assets": s.assets[::-1]}, {"held_out": not s.held_out}):
        assert scenarios.digest(s.model_copy(update=changes)) != scenarios.digest(s)


line = st.from_regex(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]{1,40}", fullmatch=True)

fraction = st.floats(0, 1)


@settings(max_examples=150, deadline=None)
@given(
    title=line,
    prose=st.lists(line, max_size=4),
    kind=word,
    ids=st.sets(word, min_size=2, max_size=2),
    p=fraction,
)
def test_round_trip_of_any_text(title: str, prose: list[str], kind: str, ids: set[str], p: float) -> None:
    data = base() | {"title": title, "description": "\n".join(prose), "noise_rate": p}
    asset, identity = sorted(ids)
    data["assets"][0] |= {"id": asset, "kind": kind}
    data["identities"][0] |= {"id": identity}
    for stage in data["stages"]:
        stage |= {key: {"web": asset, "alice": identity}[stage[key]] for key in ("asset", "identity") if key in stage}
    s = scenarios.Scenario.model_validate(data)
    assert scenarios.loads(scenarios.dump(s)) == s
    assert scenarios.loads(s.model_dump_json(), source="a.json") == s


@settings(max_examples=200, deadline=None)
@given(st.one_of(word, line))
def test_the_yaml_library_agrees_on_plain_words(text: str) -> None:
    meaning = plain(text)
    if isinstance(meaning, int | bool) or meaning is None:
        assert yaml.safe_load(text) == meaning


# --- any input at all -------------------------------------------------------------------------------------------------

DAMAGED = st.sampled_from([GOOD, scenarios.dump(scenarios.load(HARDENED[3]))])
PIECES = st.sampled_from(
    [
        "&a ",
        "*a",
        "!!int ",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "\t",
        "'",
        '"',
        "|\n",
        "%",
        "? ",
        "no",
        "\x00",
        "~",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["<string>", "a.json"]))
def test_any_text_loads_or_raises_scenario_error(text: str, source: str) -> None:
    with pytest.raises(scenarios.ScenarioError):
        scenarios.loads(text, source)


@settings(max_examples=150, deadline=None)
@given(DAMAGED, st.floats(0, 1), st.integers(0, 12), st.one_of(PIECES, st.text(max_size=4)))
def test_a_damaged_file_loads_or_raises_scenario_error(good: str, where: float, length: int, piece: str) -> None:
    start = int(where * len(good))
    try:
        scenarios.loads(good[:start] + piece + good[start + length :])
    except scenarios.ScenarioError as error:
        assert 1 <= len(error.problems) <= 21

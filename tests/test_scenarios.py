"""The scenario package: its file format, and how it refuses bad files.

Each file in bad_scenarios/ begins with `# expect:` and the pieces, parted by ` | `, that the error must hold.
JSON has no comments, so the pieces for .json files are in `BAD_JSON`.
"""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pydantic
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import scenarios
from scenarios.__main__ import main, schema
from scenarios.model import MAX_ASSETS, MAX_BENIGN, MAX_STAGES
from scenarios.read import MAX_FILE_BYTES, plain

ROOT = Path(__file__).parent.parent
BAD = Path(__file__).parent / "bad_scenarios"
CAMPAIGNS = ROOT / "scenarios" / "campaigns"
NAMES = scenarios.names()
HARDENED = scenarios.names("hardened")
FILES = {name: CAMPAIGNS / f"{name}.yaml" for name in NAMES} | {
    name: CAMPAIGNS / "hardened" / f"{name}.yaml" for name in HARDENED
}
BACKUP = {"id": "backup", "name": "Back up", "asset": "web", "rate": 0.1, "strength": 0.4, "signal": "data_staging"}

BAD_JSON = {
    "deep.json": ["[0][0]", "nested more than 16 levels", "remove the extra brackets"],
    "duplicate.json": ["field 'horizon' is given twice", "remove one"],
    "infinity.json": ["assets[1].criticality (db): got 1e999", "too large"],
    "nan.json": ["assets[1].criticality (db): got NaN", "a plain one, such as 0.5"],
    "text_for_number.json": ["horizon: got '40', which is text; remove the quotes"],
    "trailing_comma.json": [":96: is not JSON", "check the quotes, commas and brackets"],
    "very_deep.json": ["nested more than 16 levels"],
    "yaml_inside.json": [":1: is not JSON"],
}


def base() -> dict[str, Any]:
    """A small valid scenario as plain data: a root, a collection stage, and exfiltration."""
    common = {"success": 0.9, "detection": 0.3, "lag": [1, 4]}
    web = {"id": "web", "kind": "service", "criticality": 0.7, "segment": "edge"}
    alice = {"id": "alice", "role": "engineer", "privilege": 0.6}
    enter = {"tactic": "TA0001", "technique": "T1566.002", "identity": "alice", "dwell": [2, 5]}
    gather = {"tactic": "TA0009", "technique": "T1213.006", "asset": "web", "dwell": [3, 6]}
    leave = {"tactic": "TA0010", "technique": "T1041", "asset": "web", "dwell": [1, 1], "exfil": True}
    return {
        "format": 1,
        "id": "sample",
        "title": "A short campaign",
        "horizon": 40,
        "noise_rate": 0.1,
        "assets": [web],
        "identities": [alice],
        "stages": [
            {"id": "phish", "name": "Phish", **enter, **common},
            {"id": "collect", "name": "Collect", "prerequisites": ["phish"], **gather, **common},
            {"id": "exfil", "name": "Leave", "prerequisites": ["collect"], **leave, **common},
        ],
    }


def as_yaml(data: Any) -> str:
    # The detour parts values that share memory, which would become anchors and aliases.
    return yaml.safe_dump(json.loads(json.dumps(data)), sort_keys=False)


def read(data: Any) -> scenarios.Scenario:
    return scenarios.loads(as_yaml(data))


def error_of(text: str, source: str = "<string>") -> str:
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.loads(text, source)
    return str(caught.value)


# --- good files ---------------------------------------------------------------------------------------------


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


def test_the_example_in_the_package_docstring_is_valid() -> None:
    doc = scenarios.__doc__ or ""
    example = doc[doc.index("    format: 1") : doc.index("`python -m scenarios validate")]
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


# --- round trips --------------------------------------------------------------------------------------------


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
word = st.one_of(
    st.sampled_from(["no", "1e5", "0x1F", "1_000", "12", "2024-01-31", "null", "True", "1.0", "0o7", "on", "1e-3"]),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
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


# --- any input at all ---------------------------------------------------------------------------------------

GOOD = scenarios.dump(scenarios.load(NAMES[2]))
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


# --- bad files ----------------------------------------------------------------------------------------------


def test_there_are_many_bad_files() -> None:
    assert len(list(BAD.iterdir())) >= 45


@pytest.mark.parametrize("path", sorted(BAD.iterdir()), ids=lambda path: path.name)
def test_bad_file(path: Path) -> None:
    if path.suffix == ".json":
        expected = BAD_JSON[path.name]
    else:
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert first.startswith("# expect: ")
        expected = first.removeprefix("# expect: ").split(" | ")
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.load(path)
    for piece in expected:
        assert piece in str(caught.value)
    for problem in caught.value.problems:
        assert problem.startswith(str(path))
        assert problem.isprintable()
        assert len(problem) < 700 + len(str(path))


def test_all_problems_are_listed_up_to_a_limit() -> None:
    data = base()
    data["assets"] = [data["assets"][0] | {"criticality": 2, "id": f"a{i}"} for i in range(50)]
    with pytest.raises(scenarios.ScenarioError) as caught:
        read(data)
    assert len(caught.value.problems) == 21
    assert "and more problems; correct these first" in caught.value.problems[-1]


def test_cross_field_problems_are_limited_too() -> None:
    data = base()
    data["assets"] = data["assets"] * 50
    with pytest.raises(scenarios.ScenarioError) as caught:
        read(data)
    assert len(caught.value.problems) == 21
    assert "assets[20].id (web): 'web' is already the id of assets[0]" in caught.value.problems[19]


def test_errors_survive_copying() -> None:
    error = scenarios.ScenarioError("one", "two")
    assert copy.copy(error).problems == ("one", "two")
    assert str(error) == "one\ntwo"


def test_too_many_assets() -> None:
    data = base()
    data["assets"] += [data["assets"][0] | {"id": f"a{i}"} for i in range(17_000)]
    message = error_of(json.dumps(data), "a.json")
    assert f"assets: has 17001 entries, but at most {MAX_ASSETS} are allowed; remove some" in message


def test_too_many_stages() -> None:
    data = base()
    data["stages"] += [data["stages"][0] | {"id": f"s{i}"} for i in range(MAX_STAGES - 2)]
    assert f"stages: has 257 entries, but at most {MAX_STAGES} are allowed; remove some" in error_of(
        json.dumps(data), "a.json"
    )


def test_too_many_benign_activities() -> None:
    data = base() | {"benign": [BACKUP | {"id": f"b{i}", "rate": 0} for i in range(MAX_BENIGN)]}
    assert len(read(data).benign) == MAX_BENIGN
    data["benign"].append(BACKUP)
    assert f"benign: has 65 entries, but at most {MAX_BENIGN} are allowed; remove some" in error_of(as_yaml(data))


@pytest.mark.parametrize("source", ["<string>", "a.json"])
def test_too_many_values(source: str) -> None:
    text = '{"assets": [' + "1," * 1_000_001 + "1]}"
    assert "more than 1,000,000 values" in error_of(text, source)


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    with pytest.raises(scenarios.ScenarioError, match="is 52,428,800 bytes long, the limit is 16,777,216"):
        scenarios.load(path)
    assert "make the scenario smaller" in error_of("#" * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "a: {"])
def test_bottomless_nesting_is_quick(opening: str) -> None:
    began = time.perf_counter()
    error_of(opening * 200_000)
    error_of(opening * 200_000, "a.json")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("word", ["1_" * 500_000 + "x", "1:5" * 300_000, "1.0e" + "1" * 900_000, "9" * 900_000])
def test_long_words_are_quick(word: str) -> None:
    began = time.perf_counter()
    assert "horizon: got" in error_of(f"horizon: {word}\n")
    assert time.perf_counter() - began < 2


def test_ten_thousand_entities_are_quick() -> None:
    data = base()
    data["assets"] += [data["assets"][0] | {"id": f"a{i}"} for i in range(5_000)]
    data["identities"] += [data["identities"][0] | {"id": f"i{i}"} for i in range(5_000)]
    text = scenarios.dump(scenarios.Scenario.model_validate(data))
    began = time.perf_counter()
    s = scenarios.loads(text)
    assert time.perf_counter() - began < 3
    assert len(s.assets) + len(s.identities) == 10_002


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "a.yaml: the file is empty"),
        (b"format: 1\ntitle: caf\xe9\n", "a.yaml:2: is not UTF-8 text (byte 0xe9); save the file as UTF-8"),
        ("format: 1".encode("utf-16"), "a.yaml:1: is not UTF-8 text (looks like UTF-16)"),
        (b"\x00" * 100, "a.yaml:1: character U+0000 is not allowed"),
        (b"\x1f\x8b\x08\x00 gzip", "a.yaml:1: is not UTF-8 text"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.load(path)
    assert expected in str(caught.value)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "notes.txt").write_text("format: 1")
    for path, expected in (
        ("folder.yaml", "is a directory; give the path of a file in it"),
        ("pipe.yaml", "is not a regular file; copy the scenario into one"),
        ("missing.yaml", "no such file or directory; check the path"),
        ("notes.txt", "to read it as a file, let its name end in .yaml, .yml, .json"),
        ("x" * 5000 + ".yaml", "file name too long; check the path"),
        ("a\0b.yaml", "embedded null byte; check the path"),
    ):
        with pytest.raises(scenarios.ScenarioError) as caught:
            scenarios.load(tmp_path / path)
        assert expected in str(caught.value)
        assert str(caught.value).isprintable()


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("format: 1")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # The mode of the file would not stop a test that runs as root.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(scenarios.ScenarioError, match="permission denied; check its permissions"):
        scenarios.load(path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("insider_repo_pivt", "did you mean 'insider_repo_pivot'?"), ("zzz", ""), ("", "(empty name)")],
)
def test_unknown_names_list_the_built_in_ones(name: str, meant: str) -> None:
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.load(name)
    assert meant in str(caught.value)
    assert all(known in str(caught.value) for known in FILES)


# --- schema and command line --------------------------------------------------------------------------------


def test_the_published_schema_is_in_step() -> None:
    published = (ROOT / "scenarios" / "schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == scenarios.Scenario.model_json_schema()
    assert published == schema() + "\n"


@pytest.mark.parametrize("name", FILES)
def test_campaigns_follow_the_schema(name: str) -> None:
    rules = json.loads((ROOT / "scenarios" / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(rules)
    campaign = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))
    jsonschema.validate(campaign, rules)
    jsonschema.validate(yaml.safe_load(scenarios.dump(scenarios.load(name))), rules)
    campaign["stages"][0]["dwell"] = [0, 5]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(campaign, rules)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "id",
        "assets",
        "identities",
        "stages",
        "horizon",
        "noise",
        "held",
        "out",
        "title",
    ]
    assert [row.split()[0] for row in rows][: len(NAMES)] == list(NAMES)
    assert rows[3].split()[1:7] == ["6", "4", "5", "70", "0.15", "yes"]


def test_validate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(GOOD)
    bad = BAD / "many_problems.yaml"
    assert main(["validate", str(good), NAMES[0]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{good}: ok (insider_repo_pivot: 6 assets, 4 identities, 6 stages)",
        f"{NAMES[0]}: ok ({NAMES[0]}: 6 assets, 4 identities, 5 stages)",
    ]
    assert main(["validate", str(bad), str(good)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}: ok") and out.count("\n") == 1
    assert len(err.splitlines()) == 4


@pytest.mark.parametrize("args", [[], ["validate"], ["frobnicate"], ["list", "extra"]])
def test_wrong_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "scenarios", "validate", str(BAD / "no_exfil.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "mark the stage in which the data leaves the enterprise" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_needs_neither_jax_nor_numpy() -> None:
    code = "import sys, scenarios as s; s.load('insider_repo_pivot'); print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

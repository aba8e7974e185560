"""Scenario files that are bad: what is said of each; schema and command line."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from scenario_files import BACKUP, FILES, GOOD, NAMES, ROOT, as_yaml, base, read

import scenarios
from scenarios.__main__ import main, schema
from scenarios.model import MAX_ASSETS, MAX_BENIGN, MAX_STAGES
from scenarios.read import MAX_FILE_BYTES

BAD = ROOT / "tests" / "bad_scenarios"

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


def error_of(text: str, source: str = "<string>") -> str:
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.loads(text, source)
    return str(caught.value)


# --- bad files --------------------------------------------------------------------------------------------------------


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


# --- schema and command line ------------------------------------------------------------------------------------------


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

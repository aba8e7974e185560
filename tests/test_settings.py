"""Training settings and the audit's gate: what is refused, before anything is loaded."""

import json
from pathlib import Path

import pytest

from grpo import gate, settings
from jaxsim.version import SIMULATOR_VERSION


@pytest.mark.parametrize("name", settings.PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    chosen = settings.load(name)
    assert chosen.campaigns and chosen.weights


def test_presets_are_the_four_that_are_documented() -> None:
    assert sorted(settings.PRESETS) == ["cpu", "large", "smoke", "t4"]


def test_the_t4_preset_is_what_a_t4_can_do() -> None:
    t4 = settings.load("t4")
    assert (t4.model, t4.dtype, t4.four_bit, t4.lora_r) == ("Qwen/Qwen2.5-1.5B-Instruct", "float16", True, 16)
    assert (t4.steps, t4.group, t4.lr, t4.beta, t4.temperature) == (60, 8, 3e-5, 0.04, 1.4)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"lr": -1}, r"cpu.yaml: lr = -1: .*greater than 0"),
        ({"lr": "fast"}, r"cpu.yaml: lr = 'fast': .*number"),
        ({"learning_rate": 1}, r"learning_rate = 1: no such setting; choose among model, "),
        ({"group": 3}, r"micro_batch = 8 does not divide prompts_per_step x group = 3; choose one that does"),
        ({"rules": "hard"}, r"hard"),
        ({"reward": "hard"}, r"reward = 'hard' is unknown; choose one of "),
        ({"layout": "xml"}, r"layout = 'xml' is unknown; choose one of compact, json"),
        ({"profile": "best"}, r"profile = 'best' is unknown; choose one of returns, published"),
        ({"signals": {"speed": 1.0}}, r"signals: 'speed' is unknown; choose among "),
        ({"scenarios": ("cloud_metadata_ssrf",)}, r"'cloud_metadata_ssrf' is held out and never trained on"),
        ({"scenarios": ("nowhere",)}, r"nowhere"),
        ({"four_bit": True, "dtype": "float32"}, r"four_bit and dtype = float32 contradict each other"),
        ({"warm_rows": 0, "steps": 0}, r"nothing would be trained"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(settings.SettingsError, match=wanted):
        settings.load("cpu", changes)


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 7\nwarm_rows: 4\n")
    assert settings.load(str(path)).steps == 7
    path.write_text("- steps\n")
    with pytest.raises(settings.SettingsError, match=r"mine.yaml: a preset is a mapping of settings; got list"):
        settings.load(str(path))
    path.write_text("steps: [")
    with pytest.raises(settings.SettingsError, match=r"mine.yaml:2: is not YAML .*check the indentation"):
        settings.load(str(path))
    with pytest.raises(settings.SettingsError, match="neither a preset nor a file; choose one of cpu"):
        settings.load(str(tmp_path / "none.yaml"))


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("steps: 7\nsteps: 8", r":2: field 'steps' is given twice, first on line 1; remove one"),
        ("steps: 010", r":1: steps: got 010, which is not a plain number; write digits only"),
        ("steps: 1:30", r":1: steps: got 1:30, which is not a plain number"),
        ("steps: 1_000", r":1: steps: got 1_000, which is not a plain number"),
        ("four_bit: yes", r":1: four_bit: got yes, on which YAML readers disagree; write true or false"),
        ("evaluate_policies: [no]", r":1: evaluate_policies\[0\]: got no, on which YAML readers disagree"),
        ("7: 8", r":1: a field is called 7, which is not text; put the name in quotes"),
        ("model: 2024-13-45", r":1: model: got 2024-13-45, which YAML takes for a date; put it in quotes"),
        (f"signals: {DEEP}", r":1: signals.*is nested more than 16 levels deep; remove the extra brackets"),
        ("signals: &a {format: 1}", r":1: signals: anchor 'a' is not supported"),
        ("model: !!python/name:os.system", r":1: model: tag .* is not supported"),
        ("lr: .nan", r":1: lr: got .nan, which is not a plain number"),
        ("lr: 1e999", r":1: lr: got 1e999, which is too large a number"),
        ("lr: 'inf'", r": lr = 'inf': .*finite number"),
        ("signals: {format: 'nan'}", r": signals.format = 'nan': .*finite number"),
        ("steps: true", r": steps = True: true and false are no numbers; write one"),
        ("signals: {format: true}", r": signals = .*: true and false are no numbers"),
        ("steps: 1\n---\nsteps: 2", r":2: a second document starts here"),
        ("model: \x00", r":1: character U\+0000 is not allowed"),
        ("", r": the file is empty; write a preset into it"),
    ],
)
def test_a_preset_is_read_as_strictly_as_a_scenario(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(settings.SettingsError, match=f"mine.yaml{wanted}") as error:
        settings.load(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_a_preset_that_is_no_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match=r"is a directory; give the path of a file in it"):
        settings.load(str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    with pytest.raises(settings.SettingsError, match=r"latin.yaml:1: is not UTF-8 text"):
        settings.load(str(tmp_path / "latin.yaml"))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", float("nan"), float("inf"), 1e999])
@pytest.mark.parametrize("field", ["temperature", "least_z", "lr", "warm_lr", "beta", "lora_dropout"])
def test_no_setting_is_not_finite(field: str, text: object) -> None:
    with pytest.raises(settings.SettingsError, match=f"{field} = "):
        settings.load("cpu", {field: text})
    with pytest.raises(settings.SettingsError, match=r"signals.format = "):
        settings.load("cpu", {"signals": {"format": text}})


CAMPAIGNS = ("supply_chain_token_drift", "federated_identity_takeover", "insider_repo_pivot")


def test_the_projects_own_reward_passes_the_gate() -> None:
    found, objections = gate.verdicts(gate.OWN, "hardened", "operational", CAMPAIGNS)
    assert [r["verdict"] for r in found] == ["certified"] * 3 and not objections


@pytest.mark.parametrize("reward", ["capped", "linear", "evidence"])
def test_the_published_rewards_do_not_and_the_witness_is_named(reward: str) -> None:
    _, objections = gate.verdicts(gate.OWN, "classic", reward, CAMPAIGNS)
    assert len(objections) == 3
    assert "is degenerate (open-loop" in objections[0] and "REVOKE_IDENTITY svc-ci-deploy, return 7.3" in objections[0]


def test_what_was_not_audited_does_not_pass(tmp_path: Path) -> None:
    _, objections = gate.verdicts(gate.OWN, "hardened-persistence", "operational", CAMPAIGNS[:1])
    assert objections == [
        "reward 'operational' under rules 'hardened-persistence' on supply_chain_token_drift has not been audited"
    ]
    path = tmp_path / "report.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not the report of a sweep"):
        gate.verdicts(path, "hardened", "operational", CAMPAIGNS)
    path.write_text(json.dumps({"simulator_version": SIMULATOR_VERSION + "x", "verdicts": []}))
    with pytest.raises(ValueError, match="audit again"):
        gate.verdicts(path, "hardened", "operational", CAMPAIGNS)

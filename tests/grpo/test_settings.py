"""Training settings and the audit's gate: what is refused, before anything is loaded."""

import json
from pathlib import Path

import pytest

import scenarios
from grpo.training import audit_gate, settings
from jaxsim.version import SIMULATOR_VERSION

SUPPLY = "supply_chain_token_drift"


@pytest.mark.parametrize("name", settings.PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    chosen = settings.load(name)
    assert chosen.campaigns and chosen.weights


def test_presets_are_the_five_that_are_documented() -> None:
    assert sorted(settings.PRESETS) == ["adapter", "cpu", "large", "smoke", "t4"]


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
        ({"steps": 0, "outer_loops": 2}, r"steps = 0 and outer_loops = 2: the last loops would learn nothing; give"),
        ({"evaluate_policies": ("hueristic",)}, r"evaluate_policies: 'hueristic' is unknown; did you mean heuristic\?"),
        ({"evaluate_episodes": 20_000}, r"cpu.yaml: evaluate_episodes = 20000: .*less than or equal to 10000"),
        ({"scenarios": (SUPPLY, SUPPLY)}, rf"'{SUPPLY}' and '{SUPPLY}' both have the id '{SUPPLY}'; leave one out"),
        ({"rows": 16, "warm_rows": 0, "prompts_per_step": 15}, r"prompts_per_step = 15 is more than there are: 2 of a"),
        ({"estimator": "exact", "backend": "unsloth"}, r"estimator = exact does not go through Unsloth; take backend"),
        ({"estimator": "exact", "profile": "published"}, r"signals: action_diversity compares the .* take sampled"),
        ({"teacher": "nowhere"}, r"teacher = 'nowhere' is no file; give one of jaxsim-soc train-policy"),
        (
            {"teacher": "own", "rules": "hardened1", "reward": "operational1"},
            r"teacher = own: none comes with the project for rules 'hardened1' and reward 'operational1'; give one of",
        ),
        ({"successor": "learned"}, r"successor = learned is the teacher, and there is none; give teacher, or take"),
        ({"outer_loops": 3, "warm_loops": 2}, r"warm_loops = 2, but a heuristic has no answer to most states of"),
        (
            {"teacher": "own", "outer_loops": 2, "warm_loops": 2, "warm_rows": 0},
            r"warm_loops = 2 and warm_rows = 0: the first loops would learn nothing; give warm_rows, or warm_loops 1",
        ),
        ({"validate_episodes": 1}, r"validate_episodes = 1: of one episode there is no standard error; give 2 or more"),
        ({"warm_acting": 0.5}, r"warm_acting = 0.5 is of a teacher, and there is none; give teacher, or 0"),
        ({"warm_sharpness": 2}, r"warm_sharpness = 2 is of a teacher, and there is none; give teacher, or 1"),
        ({"teacher": "own", "warm_loops": 2}, r"warm_loops = 2 is more than outer_loops = 1; choose as many or fewer"),
        ({"adapter": "nowhere", "warm_rows": 0}, r"adapter = 'nowhere' is no folder; give one that an adapter was"),
        ({"adapter": "default"}, r"adapter = 'default' plays itself, but a heuristic has no answer .* or warm_rows 0"),
        (
            {"credit": "critic", "successor": "waiting"},
            r"and successor = 'waiting'; take successor = student, or credit",
        ),
        ({"credit": "critic"}, r"credit = critic improves .* and estimator = 'sampled'; take estimator = exact"),
        (
            {"credit": "critic", "estimator": "exact", "objective": "target"},
            r"steps of exp\(points / eta\), and scale_rewards = 'group'; take scale_rewards = none, or credit = forks",
        ),
        ({"credit": "critic", "steps": 0}, r"credit = critic and steps = 0: nothing would be taught by it; give steps"),
        ({"critic_states": 7}, r"critic_states = 7: .*greater than or equal to 8"),
        ({"eta": 0}, r"cpu.yaml: eta = 0: .*greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, object], wanted: str) -> None:
    with pytest.raises(settings.SettingsError, match=wanted):
        settings.load("cpu", changes)


def test_two_files_of_one_id_are_refused_before_anything_else(tmp_path: Path) -> None:
    for name, noise in (("one.yaml", 0.1), ("two.yaml", 0.2)):
        a_network(tmp_path / name, "same", noise_rate=noise)
    with pytest.raises(settings.SettingsError, match=r"one.yaml' and '.*two.yaml' both have the id 'same'; .*`id`"):
        settings.load("cpu", {"scenarios": (str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))})


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
    with pytest.raises(settings.SettingsError, match="neither a preset nor a file; choose one of adapter"):
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
    found, objections = audit_gate.verdicts(audit_gate.OWN, "hardened", "operational", CAMPAIGNS)
    assert [r["verdict"] for r in found] == ["certified"] * 3 and not objections


@pytest.mark.parametrize(
    ("unmet", "said"),
    [
        ({"unmet": ["VOI_norm ≥ 0.15", "τ ≥ 0.7"]}, " for want of VOI_norm ≥ 0.15, τ ≥ 0.7"),
        ({}, ""),  # a report of before
    ],
)
def test_what_is_undecided_does_not_pass_and_says_what_it_lacks(
    tmp_path: Path, unmet: dict[str, list[str]], said: str
) -> None:
    one = a_network(tmp_path / "mine.yaml")
    report = a_report(tmp_path / "report.json", one, verdict="undecided", **unmet)
    _, objections = audit_gate.verdicts(report, "hardened", "operational", [str(tmp_path / "mine.yaml")])
    assert objections == [f"reward 'operational' under rules 'hardened' on mine is undecided{said}"]


@pytest.mark.parametrize("reward", ["capped", "linear", "evidence"])
def test_the_published_rewards_do_not_and_the_witness_is_named(reward: str) -> None:
    _, objections = audit_gate.verdicts(audit_gate.OWN, "classic", reward, CAMPAIGNS)
    assert len(objections) == 3
    assert "is degenerate (open-loop" in objections[0] and "REVOKE_IDENTITY svc-ci-deploy, return 7.3" in objections[0]


def test_what_was_not_audited_does_not_pass(tmp_path: Path) -> None:
    _, objections = audit_gate.verdicts(audit_gate.OWN, "hardened-persistence", "operational", CAMPAIGNS[:1])
    assert objections == [
        "reward 'operational' under rules 'hardened-persistence' on supply_chain_token_drift has not been audited"
    ]
    path = tmp_path / "report.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not the report of a sweep"):
        audit_gate.verdicts(path, "hardened", "operational", CAMPAIGNS)
    path.write_text(json.dumps({"simulator_version": SIMULATOR_VERSION + "x", "verdicts": []}))
    with pytest.raises(ValueError, match="audit again"):
        audit_gate.verdicts(path, "hardened", "operational", CAMPAIGNS)


# --- the gate knows a network by what it is -------------------------------------------------------------------------


def a_network(path: Path, identity: str = "mine", **changes: object) -> scenarios.Scenario:
    """A file of a user's own network: a published one with another id."""
    one = scenarios.load(CAMPAIGNS[0]).model_copy(update={"id": identity, **changes})
    path.write_text(scenarios.dump(one))
    return one


def a_report(path: Path, audited: scenarios.Scenario, **changes: object) -> Path:
    row = {"scenario": audited.id, "rules": "hardened", "reward": "operational", "verdict": "certified"}
    row |= {"exploits": [], "evg_norm_ci": [0.4, 0.5], "digest": scenarios.digest(audited), **changes}
    path.write_text(json.dumps({"simulator_version": SIMULATOR_VERSION, "verdicts": [row]}))
    return path


def test_the_projects_verdicts_are_about_the_networks_as_they_are() -> None:
    for row in audit_gate.rows_of(audit_gate.OWN):
        assert row["digest"] == scenarios.digest(scenarios.load(row["scenario"])), row["scenario"]


def test_a_certified_network_of_a_user_passes_whatever_its_file_is_called(tmp_path: Path) -> None:
    one = a_network(tmp_path / "my network.yaml")
    report = a_report(tmp_path / "report.json", one)
    (tmp_path / "copy.json").write_text(one.model_dump_json())
    # Beside the project's own: both in one run.
    names = (str(tmp_path / "my network.yaml"), CAMPAIGNS[1], str(tmp_path / "copy.json"))
    found, objections = audit_gate.verdicts(report, "hardened", "operational", names)
    assert [r["scenario"] for r in found] == ["mine", CAMPAIGNS[1], "mine"]
    assert [r["verdict"] for r in found] == ["certified"] * 3 and not objections


def test_a_changed_file_with_a_published_id_does_not_pass(tmp_path: Path) -> None:
    path = tmp_path / "changed network.yaml"
    one = a_network(path, CAMPAIGNS[0], noise_rate=0.9)
    found, (objection,) = audit_gate.verdicts(audit_gate.OWN, "hardened", "operational", [str(path)])
    assert found[0]["verdict"] == audit_gate.NOT_AUDITED
    assert (
        f"{CAMPAIGNS[0]} ({path}) has not been audited: a network of this id has been, with other content" in objection
    )
    assert scenarios.digest(one)[:12] in objection
    said = audit_gate.remedy("hardened", "operational", found, [str(path)])
    what = f"--scenario '{path}' --rules hardened --reward operational --certify --out out/audit"
    assert f"(jaxsim-soc audit {what}), then give --audit out/audit/report.json" in said


def test_a_network_that_was_never_audited_says_so(tmp_path: Path) -> None:
    one = a_network(tmp_path / "mine.yaml")
    _, (objection,) = audit_gate.verdicts(audit_gate.OWN, "hardened", "operational", [str(tmp_path / "mine.yaml")])
    assert objection.endswith(f"on mine ({tmp_path / 'mine.yaml'}) has not been audited")
    # A report of before there were digests, and one of a single attacker.
    old = a_report(tmp_path / "old.json", one, digest=None)
    _, (objection,) = audit_gate.verdicts(old, "hardened", "operational", [str(tmp_path / "mine.yaml")])
    assert "a report of an earlier version has this id" in objection
    narrow = a_report(tmp_path / "narrow.json", one, personality="stealthy")
    found, (objection,) = audit_gate.verdicts(narrow, "hardened", "operational", [str(tmp_path / "mine.yaml")])
    assert objection.endswith("has not been audited: it has been against the attacker 'stealthy' alone")
    assert "--certify" in audit_gate.remedy("hardened", "operational", found, [str(tmp_path / "mine.yaml")])


def test_the_witness_is_a_plan_of_no_luck_where_such_a_one_does(tmp_path: Path) -> None:
    one, names = a_network(tmp_path / "mine.yaml"), [str(tmp_path / "mine.yaml")]
    lucky = {"plan": ["INVESTIGATE a"] * 9, "return": 7.0}
    for certain, reads, witness in ((6.0, 5.0, "PATCH_ASSET b, return 6.00"), (6.0, 6.5, "INVESTIGATE a; ")):
        more = {
            "verdict": "degenerate", "exploits": ["open-loop"], "best_open_loop": lucky, "farming": lucky,
            "best_open_loop_std0": {"plan": ["PATCH_ASSET b"], "return": certain}, "best_evidence": {"return": reads},
        }  # fmt: skip
        report = a_report(tmp_path / "report.json", one, **more)
        _, (objection,) = audit_gate.verdicts(report, "hardened", "operational", names)
        assert f"; its witness: {witness}" in objection


def test_reports_become_a_collection_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, best = a_network(tmp_path / "mine.yaml"), {"plan": ["MONITOR"], "return": 1.0, "std": 0.0}
    paths = []
    for i, audited in enumerate((one, one.model_copy(update={"noise_rate": 0.9}))):
        more = (
            {"personality": "any", "unmet": []} | dict.fromkeys(audit_gate.BEST, best) | {"best_open_loop_std0": None}
        )
        paths.append(a_report(tmp_path / f"{i}.json", audited, **more))
        document = json.loads(paths[i].read_text()) | {"budget": {"name": "tiny"}, "seed": 0}
        paths[i].write_text(json.dumps(document))
    made = audit_gate.collection([*paths, paths[0]])
    assert [r["scenario"] for r in made["verdicts"]] == ["mine", "mine"]
    (tmp_path / "own.json").write_text(json.dumps(made))
    monkeypatch.setattr(audit_gate, "OWN", tmp_path / "own.json")
    assert not audit_gate.verdicts(audit_gate.OWN, "hardened", "operational", [str(tmp_path / "mine.yaml")])[1]
    with pytest.raises(ValueError, match=r"old.json: not the report of this version's sweep"):
        audit_gate.collection([a_report(tmp_path / "old.json", one)])

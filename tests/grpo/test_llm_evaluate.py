"""grpo/evaluation.py and its pages: rows, files, interruption, refusal of other settings, hostile answers."""

import csv
import json
import math
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import forked
import jax
import numpy as np
from scripted import CLOUD, SUPPLY, TICKS, assert_finite, command, error_of, rows_in, scripted, slow_main

import jaxsim
import scenarios
from grpo.model.contents import fingerprint
from grpo.playing import evaluation, folder, speaker
from grpo.reporting import measure, report, transcript_page
from jaxsim import policies
from jaxsim.audit import search
from jaxsim.audit.arena import EVIDENCE, PLAN, Arena, Candidate
from jaxsim.audit.budgets import BUDGETS, Budget
from jaxsim.replays import load_record, play_record
from jaxsim.response import Response
from jaxsim_soc import cli


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "load", scripted)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speaker, "load", scripted)
        evaluation.main(command(out))
    return out


# --- the report -------------------------------------------------------------------------------------------------------


def test_all_files_are_there(whole: Path) -> None:
    found = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file())
    pages = [name for name in found if name.startswith("transcripts/")]
    assert len(pages) == 2 and {Path(p).suffix for p in pages} == {".html", ".json"}
    assert set(found) - set(pages) == {
        *("lock", "manifest.json", "report.md", "rows.csv", "rows.json", "parts/base.json"),
        *(f"parts/{SUPPLY}-base.jsonl", f"parts/{SUPPLY}-base-shuffled.jsonl"),
        *(f"pictures/{name}" for name in report.PICTURES),
    }
    for name in report.PICTURES:
        assert (whole / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    text = (whole / "report.md").read_text()
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links and all((whole / link).is_file() for link in links)
    assert "scripted" in text and "jaxsim-soc evaluate-model --scenario" in text


def test_rows_say_what_was_played(whole: Path) -> None:
    rows = rows_in(whole, clock=True)
    assert [r["policy"] for r in rows] == ["random", "monitor", "base"]
    assert_finite(rows)
    random, monitor, base = rows
    assert monitor["over_monitor"] is None and base["over_base"] is None
    assert base["over_monitor"] == pytest.approx(base["mean_return"] - monitor["mean_return"], abs=1e-5)
    assert base["over_monitor_ci"][0] <= base["over_monitor"] <= base["over_monitor_ci"][1]
    assert base["p_over_random"] + random["p_over_monitor"] > 0
    assert base["decisions"] == sum(base["reasons"].values()) == 3 * TICKS
    assert base["reasons"]["unknown verb"] > 0 and base["fallback_rate"] == 0
    assert base["invalid_rate"] == pytest.approx(base["reasons"]["unknown verb"] / (3 * TICKS))
    assert sum(base["actions_before_alert"].values()) + sum(base["actions_after_alert"].values()) == 3 * TICKS
    assert (
        base["actions_before_alert"]["INVALID"] + base["actions_after_alert"]["INVALID"]
        == base["reasons"]["unknown verb"]
    )
    assert base["shuffle_loss"] is not None and base["shuffle_drop"] is None  # there is no gain to lose
    assert monitor["downtime"] == 0 and monitor["contained_before_alert"] is None
    with open(whole / "rows.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(r["mean_return"]) for r in table] == [r["mean_return"] for r in rows]
    assert float(table[2]["over_monitor_low"]) == base["over_monitor_ci"][0]


def test_other_policies_and_campaigns_share_the_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def find(arenas: list[Arena], budget: Budget, seed: int, advance: Any) -> Any:
        searched.append((arenas[0].scenario.id, budget, seed))
        plan = Candidate(PLAN, policies.PLAN, np.asarray([0, 3, 0, 9], np.int32))
        family = Candidate(EVIDENCE, policies.EVIDENCE, jax.tree.map(np.asarray, policies.DEFAULT_EVIDENCE))
        return [SimpleNamespace(open_loop=[plan], evidence=[family])]

    monkeypatch.setattr(search, "search", find)
    (tmp_path / "adapter").mkdir()
    argv = ["--scenario", SUPPLY, CLOUD, "--episodes", "4", "--out", str(tmp_path), "--no-shuffle"]
    argv += ["--no-base", "--adapter", str(tmp_path / "adapter")]
    evaluation.main(argv)
    rows = rows_in(tmp_path)
    names = ["random", "monitor", "heuristic", "open-loop", "evidence", "learned", "memoryless", "trained"]
    assert [(r["scenario"], r["policy"]) for r in rows] == [
        (s, name) for s in (measure.ALL, SUPPLY, CLOUD) for name in names
    ]
    assert_finite(rows)
    for k, name in enumerate(names):
        every, first, second = (rows[k + i * len(names)] for i in range(3))
        assert every["policy"] == name and every["n"] == 8 and first["n"] == second["n"] == 4
        assert every["mean_return"] == pytest.approx((first["mean_return"] + second["mean_return"]) / 2, abs=1e-5)
        low, high = every["mean_return_ci"]
        assert low <= every["mean_return"] <= high
    # The rows are those of the same keys played directly.
    env, params = jaxsim.make(SUPPLY)
    key = jax.random.key(evaluation.evaluation_seed(0))
    direct = jaxsim.rollout(env, params, *jaxsim.BASELINES["heuristic"], key, 4)
    assert rows[len(names) + 2]["mean_return"] == pytest.approx(float(direct.episode_return.mean()), abs=1e-5)
    assert "INVESTIGATE" in (tmp_path / "report.md").read_text() and "at tick 3" in (tmp_path / "report.md").read_text()
    # The search is not repeated; rows can be left out afterwards.
    evaluation.main([*argv, "--policies", "open-loop", "evidence", "--transcripts", "0"])
    assert searched == [(name, BUDGETS["tiny"], 0) for name in (SUPPLY, CLOUD)]
    kept = {(r["scenario"], r["policy"]): r["mean_return"] for r in rows}
    again = {(r["scenario"], r["policy"]): r["mean_return"] for r in rows_in(tmp_path)}
    assert again == {k: v for k, v in kept.items() if k[1] not in ("heuristic", "learned", "memoryless")}


def test_with_an_adapter_it_is_compared_to_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    evaluation.main(
        command(tmp_path / "out", "--adapter", str(adapter), "--asking", "on-change", "--no-shuffle", "--rename")
    )
    rows = {r["policy"]: r for r in rows_in(tmp_path / "out")}
    assert list(rows) == ["random", "monitor", "base", "trained"]
    assert rows["trained"]["over_base"] == pytest.approx(
        rows["trained"]["mean_return"] - rows["base"]["mean_return"], abs=1e-5
    )
    assert 0 < rows["trained"]["decisions"] < 3 * TICKS and rows["trained"]["shuffle_loss"] is None
    assert rows["trained"]["name_loss"] is not None and rows["base"]["name_loss"] is None
    said = (tmp_path / "out" / "parts" / f"{SUPPLY}-trained-renamed.jsonl").read_text()
    assert ("asset-" in said or "identity-" in said) and "svc-ci-deploy" not in said


def test_probability_of_improvement_and_shares_are_those_of_small_numbers() -> None:
    def told(returns: list[float], shuffled: list[float] | None = None, renamed: Any = None) -> measure.Told:
        n = len(returns)
        env, params = jaxsim.make(SUPPLY)
        stats = jaxsim.rollout(env, params, *jaxsim.BASELINES["monitor"], jax.random.key(0), n)
        stats = stats._replace(episode_return=np.asarray(returns, np.float32))
        flat = np.zeros((2, n))
        return measure.Told(
            "base",
            SUPPLY,
            stats,
            flat.astype(int),
            flat == 0,
            flat == 0,
            flat,
            Response(*np.zeros((5, n), np.int32)),
            shuffled and np.asarray(shuffled),
            renamed,
        )

    others = {"monitor": [told([0, 1, 2, 3])]}
    row = measure.measure([told([1, 1, 3, 4], [0.25, 1, 1.5, 4])], others)
    assert row["over_monitor"] == 0.75 and row["p_over_monitor"] == 0.875
    assert row["iqm_return"] == 2 and row["mean_return"] == 2.25
    assert row["shuffle_loss"] == pytest.approx(0.5625) and math.isfinite(row["shuffle_drop_ci"][1])
    clear = measure.measure([told([2, 3, 4, 5], [1, 2, 3, 4])], others)
    assert clear["shuffle_drop"] == pytest.approx(0.5) and clear["shuffle_drop_ci"] == pytest.approx([0.5, 0.5])
    named = measure.measure([told([2, 3, 4, 5], renamed=np.asarray([1.5, 2.5, 3.5, 4.5]))], others)
    assert named["name_drop"] == pytest.approx(0.25) and named["name_loss"] == 0.5 and named["shuffle_drop"] is None
    assert clear["name_drop"] is None
    assert row["hours_to_detect"] == row["hours_of_dwell"] == 0 and row["detected"] == 1
    assert clear["p_over_monitor"] == 1 and clear["over_monitor_ci"] == pytest.approx([2, 2])


def test_evaluation_seeds_are_others_than_those_of_the_search() -> None:
    seeds = [evaluation.evaluation_seed(seed) for seed in range(100)]
    assert len(set(seeds)) == 100 and not set(seeds) & set(range(10_000))
    assert evaluation.evaluation_seed(0) == 3762184912  # a change would make results of before and after differ


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", [2, 40])
def test_killed_at_any_moment_the_rows_are_the_same(whole: Path, tmp_path: Path, ticks: int) -> None:
    said, argv = tmp_path.with_suffix(".txt"), command(tmp_path)
    process = forked.started(said, tmp_path, slow_main, argv)
    part = tmp_path / "parts" / f"{SUPPLY}-base.jsonl"
    try:
        while not part.exists() or part.read_bytes().count(b"\n") < ticks:
            assert process.is_alive(), said.read_text()
            time.sleep(0.01)
    finally:
        process.kill()
        forked.ended(process)
    kept = part.read_bytes()
    assert ticks <= kept.count(b"\n") < TICKS and not (tmp_path / "rows.json").exists()
    with open(part, "ab") as file:  # a line that was cut off
        file.write(kept.splitlines()[-1][:-20])
    evaluation.main(argv)
    assert part.read_bytes().startswith(kept)
    assert rows_in(tmp_path) == rows_in(whole)
    for page in (whole / "transcripts").iterdir():
        assert (tmp_path / "transcripts" / page.name).read_bytes() == page.read_bytes()


def test_a_finished_run_asks_nobody(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows_in(whole, clock=True)
    monkeypatch.setattr(speaker, "load", lambda *args: pytest.fail("loaded"))
    evaluation.main(command(whole))
    after = rows_in(whole, clock=True)
    assert after[2] == before[2]  # the seconds of the model as well


@pytest.mark.parametrize(
    "tail",
    [b"{", b"\n", b'{"tick": 7, "texts": [], "seconds": 0, "tokens": 0}\n', b'{"tick": 1}\n', b"\xff\xfe\n", b"[1]\n"],
)
def test_what_follows_the_last_whole_turn_is_dropped(tmp_path: Path, tail: bytes) -> None:
    part = tmp_path / "x.jsonl"
    good = b'{"tick": 0, "texts": ["a", null], "seconds": 1.5, "tokens": 3}\n'
    part.write_bytes(good + tail)
    assert [turn["texts"] for turn in folder.read_part(part, 2)] == [["a", None]]
    assert part.read_bytes() == good
    assert folder.read_part(tmp_path / "none.jsonl", 2) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seed", "1"], ["seed = 0, not 1"]),
        (["--episodes", "4"], ["episodes = 3, not 4"]),
        (["--layout", "json"], ["layout = 'compact', not 'json'"]),
        (["--no-constrained"], ["decode = 'constrained', not 'free'"]),
        (["--model", "other/model"], ["model = 'embedded', not 'other/model'"]),
        (["--scenario", CLOUD], ["scenario = ["]),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: list[str]
) -> None:
    before = (whole / "rows.json").read_bytes()
    message = error_of(capsys, [*command(whole), *more])
    assert all(part in message for part in [*said, str(whole), "another --out", "--restart"]), message
    assert (whole / "rows.json").read_bytes() == before


def test_an_adapter_joins_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, adapter = tmp_path / "out", tmp_path / "adapter"
    adapter.mkdir()
    evaluation.main(command(out, "--no-shuffle"))
    said, base = (out / "parts" / f"{SUPPLY}-base.jsonl").read_bytes(), rows_in(out)[2]
    evaluation.main(command(out, "--no-shuffle", "--adapter", str(adapter)))
    rows = rows_in(out)
    assert [r["policy"] for r in rows] == ["random", "monitor", "base", "trained"]
    assert (out / "parts" / f"{SUPPLY}-base.jsonl").read_bytes() == said
    assert rows[2]["mean_return"] == base["mean_return"] != rows[3]["mean_return"]
    assert "adapter = " in error_of(capsys, command(out, "--no-shuffle"))


def test_a_model_and_an_adapter_are_known_again_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a model", "other", "wrong", "right"):
        Path(name).mkdir()
        (Path(name) / "file").write_text(name)
    Path("link").symlink_to("a model")
    out = Path("out [x]")

    def begin(*more: str) -> None:
        with folder.locked(out):
            folder.begin(out, evaluation.settings(evaluation.parse_args(command(out, *more))), restart=False)

    begin("--model", "a model")
    begin("--model", "./link", "--adapter", "wrong")
    (out / "parts" / f"{SUPPLY}-trained.jsonl").touch()  # it said nothing: another may take its place
    begin("--model", "other/../a model/", "--adapter", "right")
    (out / "parts" / f"{SUPPLY}-trained.jsonl").write_text("{}")
    begin("--model", str(tmp_path / "a model"), "--adapter", str(tmp_path / "right"))
    assert "adapter = " in error_of(capsys, command(out, "--model", "link", "--adapter", "wrong"))
    assert "model = " in error_of(capsys, command(out, "--model", "other", "--adapter", "right"))
    assert "--adapter: 'none' is no folder" in error_of(capsys, command(out, "--adapter", "none"))


def test_restart_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.main(command(tmp_path, "--no-shuffle"))
    first = rows_in(tmp_path)
    assert "seed" in error_of(capsys, command(tmp_path, "--seed", "1", "--no-shuffle"))
    evaluation.main(command(tmp_path, "--seed", "1", "--no-shuffle", "--restart"))
    assert rows_in(tmp_path)[2]["mean_return"] != first[2]["mean_return"]
    (tmp_path / "manifest.json").unlink()
    assert "manifest.json" in error_of(capsys, command(tmp_path, "--seed", "1"))
    (tmp_path / "manifest.json").write_text("{")
    assert "cannot be read" in error_of(capsys, command(tmp_path, "--seed", "1"))


def test_an_adapter_that_has_changed_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"a" * 3_000_000)
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path / "none") is None


def test_two_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder.locked(tmp_path):
        assert "another evaluation is writing there" in error_of(capsys, command(tmp_path))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--out"),
        (["--out", "x", "--no-base"], "--no-base"),
        (["--out", "x", "--episodes", "1"], "from 2 to"),
        (["--out", "x", "--temperature", "nan"], "--temperature"),
        (["--out", "x", "--policies", "hueristic"], "did you mean heuristic?"),
        (["--out", "x", "--asking", "never"], "always, on-change"),
        (["--out", "x", "--layout", "yaml"], "compact, json"),
        (["--out", "x", "--rules", "modern"], "classic, hardened"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in error_of(capsys, argv)
    assert not list(tmp_path.iterdir())


def test_an_interruption_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(args: Any, adapter: Path | None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(speaker, "load", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: evaluation.main(command(tmp_path)))
    assert ended.value.code == 130
    err = capsys.readouterr().err
    assert err.strip().endswith("interrupted") and "Traceback" not in err


# --- pages ------------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, and whether they close as they open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_answers_are_shown_and_do_nothing(whole: Path) -> None:
    (path,) = (whole / "transcripts").glob("*.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not {"script", "img", "iframe", "link", "object", "form", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert "default-src 'none'" in text
    assert '<script>alert(1)</script></pre></details><img src=x onerror="alert(2)">' in page.text
    assert "\x00" not in text and "\u202e" not in text and "‹U+202E›" in page.text and "‹U+D800›" in page.text
    assert page.text.count("INVALID: unknown verb") > 0


def test_a_page_tells_the_episode_of_its_record(whole: Path, tmp_path: Path) -> None:
    (path,) = (whole / "transcripts").glob("*.json")
    record = load_record(path)
    scenario, _, played = play_record(record)
    total = float(played.reward.sum())
    assert total == pytest.approx(record["return"], abs=1e-4)
    text = Page((whole / "transcripts" / path.with_suffix(".html").name).read_text()).text
    for part in (
        scenario.title,
        "hardened",
        "operational",
        f"{total:+.3f} in {TICKS} ticks",
        "no loss",
        "Tick 0 of 70",
    ):
        assert part in text
    out = tmp_path / "page.html"
    transcript_page.main([str(path), "--out", str(out)])
    assert out.read_bytes() == (path.with_suffix(".html")).read_bytes()


def test_a_record_without_texts_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "version": jaxsim.SIMULATOR_VERSION,
        "scenario": SUPPLY,
        "rules": "classic",
        "reward": "evidence",
        "personality": "any",
        "seed": 3,
        "episode": 1,
        "actions": ["MONITOR", "ISOLATE_ASSET ci-runner-01", "INVALID", *["MONITOR"] * 80],
    }
    path, out = tmp_path / "record.json", tmp_path / "page.html"
    path.write_text(json.dumps(record))
    transcript_page.main([str(path), "--out", str(out)])
    text = Page(out.read_text()).text
    assert "ISOLATE_ASSET ci-runner-01" in text and "token-theft" in text
    path.write_text(json.dumps(record | {"actions": ["FLY"]}))
    with pytest.raises(SystemExit):
        cli.run(lambda: transcript_page.main([str(path), "--out", str(out)]))
    assert "FLY" in capsys.readouterr().err
    path.write_text("[]")
    with pytest.raises(SystemExit):
        cli.run(lambda: transcript_page.main([str(path), "--out", str(out)]))
    assert "JSON object" in capsys.readouterr().err


@pytest.mark.parametrize("restore", [False, True])
def test_an_own_scenario_has_pages_too(tmp_path: Path, restore: bool) -> None:
    """RESTORE is asked for, counted and shown where the rules have it."""
    rules = "hardened1" + "+foothold+liftable+eradication+believable_paths" * restore
    own = jaxsim.load_scenario(SUPPLY).model_copy(update={"id": "own-network", "horizon": 12})
    (tmp_path / "own.yaml").write_text(scenarios.dump(own))
    out, argv = tmp_path / "out", ["--no-shuffle", "--rules", rules]
    evaluation.main(command(out, *argv, scenario=str(tmp_path / "own.yaml"), episodes=12))
    (path,) = (out / "transcripts").glob("*.json")
    record = load_record(path)
    assert float(play_record(record)[2].reward.sum()) == pytest.approx(record["return"], abs=1e-4)
    lines = (out / "parts" / "own-network-base.jsonl").read_text().splitlines()
    said = [text for line in lines for text in json.loads(line)["texts"]]
    (base,) = (row for row in rows_in(out) if row["policy"] == "base")
    many = sum("RESTORE" in text for text in said)
    assert many == base["actions_before_alert"]["RESTORE"] + base["actions_after_alert"]["RESTORE"]
    assert bool(many) == ("RESTORE an asset" in Page(path.with_suffix(".html").read_text()).text) == restore

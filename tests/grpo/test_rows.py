"""Rows, their labels and files, and what a step reports of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("peft")

import jax
from training_runs import CAMPAIGN

import prompting
import scenarios
from grpo.learning import diagnostics, optimise, signals
from grpo.rows import bank as banks
from grpo.rows import rows
from jaxsim import recurrent
from jaxsim.actions import table
from jaxsim.audit import checkpoint
from jaxsim.names import parse_plan
from jaxsim.policies import BASELINES, PLAN
from jaxsim.types import CUT_OFF, EGRESS_BLOCKED, INVESTIGATE, MONITOR, PATCHED
from jaxsim.version import SIMULATOR_VERSION

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_rows_prompt_is_that_of_its_state(game: rows.Campaigns, found: rows.Rows) -> None:
    ticks = np.asarray(found.bank.state.tick).tolist()
    assert all(f"Tick {t} of 70" in text for t, text in zip(ticks, found.prompts, strict=True))
    assert len(set(found.prompts)) > 10


def test_rows_survive_their_files(game: rows.Campaigns, found: rows.Rows, tmp_path: Path) -> None:
    assert rows.load(tmp_path / "rows", game) is None
    rows.save(tmp_path / "rows", found, game)
    again = rows.load(tmp_path / "rows", game)
    assert again is not None and again.prompts == found.prompts
    for one, other in zip(again.credit, found.credit, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "rows" / "prompts.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="delete the folder"):
        rows.load(tmp_path / "rows", game)


def test_step_rewards_are_those_of_one_step(game: rows.Campaigns, found: rows.Rows) -> None:
    from jaxsim import env, reward
    from jaxsim.noise import draw

    params, transition = game.of(0), jax.jit(env.transition, static_argnums=0)
    for r, a in ((0, 0), (5, 3), (11, game.dims.actions - 1)):
        state = jax.tree.map(lambda x, r=r: jax.numpy.asarray(x[r]), found.bank.state)
        block = draw(jax.random.fold_in(jax.random.key(1), r))
        _, seen = transition(game.dims, state, jax.numpy.int32(a), block, params)
        wanted = reward.total(reward.channels(seen, params.reward), params.reward)
        assert found.step_reward[r, a] == pytest.approx(float(wanted), abs=1e-5)


def test_what_turned_out_worse_than_waiting_is_not_shown(game: rows.Campaigns, found: rows.Rows) -> None:
    legal = found.credit.legal
    contain = 11  # ISOLATE_ASSET of the first asset
    done = np.where(np.arange(24) % 2, contain, MONITOR).astype(np.int32)
    q = np.where(legal, 0.0, np.nan).astype(np.float32)
    se = np.where(legal, 0.1, np.nan).astype(np.float32)
    q[:, contain] = -0.25  # not told apart from waiting
    rows_ = found._replace(bank=found.bank._replace(action=done), credit=found.credit._replace(q=q, se=se))
    np.testing.assert_array_equal(rows.labels(rows_), done)
    q[:, contain] = -0.3  # worse
    np.testing.assert_array_equal(rows.labels(rows_), np.where(np.arange(24) % 2, -1, MONITOR))


def test_the_teachers_states_are_half_containments(game: rows.Campaigns) -> None:
    from jaxsim.actions import table

    bank = rows.from_teacher(game, BASELINES["evidence"], 20, seed=0)
    verbs = table(game.dims)[0][np.asarray(bank.action)]
    assert len(verbs) == 20 and (verbs > INVESTIGATE).sum() == 10


# --- diagnostics ------------------------------------------------------------------------------------------------------


def completion(**change: Any) -> signals.Completion:
    one = signals.Completion(True, True, 0, 0, None, False, True, 0.0, 0, 0.0, -1.0)
    return one._replace(**change)


def test_group_statistics_by_hand() -> None:
    # Deviations of (1, 3) are 1 and 1, of (2, 2) none.
    assert diagnostics.within_group([1.0, 3.0, 2.0, 2.0], [0, 0, 1, 1]) == (0.5, 0.5)


def test_a_steps_report_by_hand(game: rows.Campaigns, found: rows.Rows) -> None:
    known = diagnostics.tables(game, found)
    texts = ["nonsense", '{"action": "MONITOR"}', '{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', "{"]
    made = [diagnostics.completion(known, 0, 0, text) for text in texts]
    batch, parsed = [m[0] for m in made], [m[1] for m in made]
    totals = signals.total(batch, signals.PROFILES["returns"])
    report = diagnostics.step_report(known, [0] * 4, batch, parsed, totals)
    assert report["actions"] == {"INVALID": 2, "ISOLATE_ASSET": 1, "MONITOR": 1}
    assert report["valid_rate"] == 0.5
    assert report["parse_failures"] == {"broken JSON": 1, "no JSON": 1}
    q = found.credit.q[0]
    isolate = batch[2].action
    assert isolate is not None
    low = float(np.nanmin(q)) - signals.MARGIN
    assert totals == pytest.approx([low, float(q[0]), float(q[isolate]), low])
    assert report["action_entropy"] == pytest.approx(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)))
    assert report["regret"] == pytest.approx(float(np.nanmax(q)) - (float(q[0]) + float(q[isolate])) / 2)
    se = np.hypot(found.credit.se[0], found.credit.se[0, 0])
    assert report["rows_worth_acting"] == int(np.nanmax((q - q[0] - 3 * se)[1:]) > 0)


def test_shuffle_drop_at_rows_by_hand(game: rows.Campaigns, found: rows.Rows) -> None:
    q = np.full_like(found.credit.q, np.nan)
    isolate = prompting.parse('{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', game.inventories[0]).action
    q[:, MONITOR] = [0.0] * 23 + [4.0]
    q[:23, isolate] = 1.0
    known = diagnostics.tables(game, found._replace(credit=found.credit._replace(q=q)))
    texts = ['{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}', '{"action": "MONITOR"}']
    report = diagnostics.rows_shuffle_drop(known, [0, 23], texts)
    # Own: 1 and 4. The other's: MONITOR is worth 0 at row 0; isolating is not legal at row 23: 1 below the worst, 4.
    assert report == pytest.approx(
        {"rows": 2, "own": 2.5, "other": 1.5, "waiting": 2.0, "drop": 1.0, "drop_se": 0.0, "valid_rate": 1.0}
    )
    blind = diagnostics.rows_shuffle_drop(known, [0, 23], [texts[1]] * 2)
    assert blind["drop"] == 0
    assert diagnostics.rows_shuffle_drop(known, [0, 23], ["nonsense"] * 2)["own"] == pytest.approx((-1 + 3) / 2)


def test_what_is_in_force_is_not_what_is_restored_or_rebuilt() -> None:
    """A control repeated is one in force; RESTORE repeats none, nor does the patch that rebuilds an isolated asset."""
    rebuilt, patched = (
        rows.campaigns((CAMPAIGN,), f"hardened1+liftable{x}", "operational") for x in ("+eradication", "")
    )
    dims, inventory = rebuilt.dims, rebuilt.inventories[0]
    marks = np.zeros((2, 4, dims.entities), bool)
    marks[:, CUT_OFF, [0, dims.assets]] = marks[:, PATCHED, [0, 1]] = marks[:, EGRESS_BLOCKED, 2] = True
    marks[1] = False
    bank: Any = SimpleNamespace(state=SimpleNamespace(marks=marks), params_index=np.zeros(2, np.int32))
    again, names = [("ISOLATE_ASSET", 0), ("REVOKE_IDENTITY", dims.assets), ("BLOCK_EGRESS", 2)], inventory.names
    for game, patches in ((rebuilt, [1]), (patched, [0, 1])):
        wanted = {(verb, names[i]) for verb, i in [*again, *(("PATCH_ASSET", i) for i in patches)]}
        found = rows.in_force(game, bank)
        assert found.shape == (2, dims.actions) and not found[1].any()
        assert {said for said, action in inventory.actions.items() if found[0, action]} == wanted


def step(**change: Any) -> dict[str, Any]:
    calm = {
        "completions": 8,
        "containments": 1,
        "blind_containments": 0,
        "rows": 1,
        "rows_without_alert": 0,
        "rows_worth_acting": 0,
        "commonest_blind": None,
    }
    return {**calm, "commonest": ("MONITOR", 5), **change}


def test_the_alarm_names_the_shortcut() -> None:
    many = diagnostics.WINDOW
    assert diagnostics.alarm([step()] * many) == ""
    fixed = step(commonest=("ISOLATE_ASSET assets[0]", 8), containments=8)
    assert "ISOLATE_ASSET assets[0] in 128 of 128 completions" in diagnostics.alarm([fixed] * many)
    assert diagnostics.alarm([fixed] * (many - 1)) == ""  # too early to tell
    assert diagnostics.alarm([step(commonest=("MONITOR", 8))] * many) == ""  # waiting is no shortcut
    waits = step(commonest=("MONITOR", 8), rows_worth_acting=1)  # what is worth more than it is not done
    rests = step(commonest=("MONITOR", 8))
    put_off = "MONITOR in 128 of 128 completions of the last 16 steps, though in 4 of 16 rows another action is worth"
    assert put_off in diagnostics.alarm([rests] * 12 + [waits] * 4)
    assert diagnostics.alarm([rests] * 13 + [waits] * 3) == ""
    assert diagnostics.alarm([rests] * 12 + [waits] * 3 + [step(commonest=("MONITOR", 5), rows_worth_acting=1)]) == ""
    blind = step(
        containments=4, blind_containments=3, rows_without_alert=1, commonest_blind=("ISOLATE_ASSET assets[0]", 2)
    )
    assert (
        "24 of 40 containments of the last 16 steps with no alert in view, mostly ISOLATE_ASSET assets[0]"
        in diagnostics.alarm([blind, step(rows_without_alert=0)] * many)
    )


def test_the_alarm_names_what_the_audit_found() -> None:
    """A scripted policy in place of a model plays the best open-loop plan of `classic` + `evidence`."""
    game = rows.campaigns((CAMPAIGN,), "classic", "evidence")
    plan = parse_plan("MONITOR;REVOKE_IDENTITY svc-ci-deploy", scenarios.load(CAMPAIGN), game.dims)
    bank = banks.collect_heuristic(game.env, game.params, PLAN, plan, jax.random.key(7), 64, 4)
    found = rows.credited(game, bank, futures=2, least_z=0.0, seed=1, layout="compact", reference=0)
    known = diagnostics.tables(game, found)
    book = optimise.Book(known, signals.PROFILES["returns"])
    reports = []
    for r in np.random.default_rng(0).permutation(len(found.prompts))[: 3 * diagnostics.WINDOW]:
        text = prompting.encode(int(found.bank.action[r]), game.inventories[0])
        book([text] * 4, [int(r)] * 4)
        reports.append(book.latest)
    reason = diagnostics.alarm(reports)
    assert "with no alert in view, mostly REVOKE_IDENTITY identities[0]" in reason


def test_a_memoryless_teacher_weighs_all_legal_actions(game: Any, found: Any, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"

    def write(restore: bool, view: str) -> None:
        weights = recurrent.init_weights(jax.random.key(3), 8, restore)
        about = {"view": view, "simulator_version": SIMULATOR_VERSION}
        path.write_bytes(checkpoint.to_bytes(checkpoint.Checkpoint(weights, about)))

    write(game.dims.restore, recurrent.MEMORYLESS)
    policy, learned = rows.teacher_of(game, path)
    chances = rows.chances(game, found.bank, learned)
    legal = list(game.inventories[0].actions.values())
    np.testing.assert_allclose(chances[:, legal].sum(axis=1), 1, atol=1e-5)
    assert policy == recurrent.POLICIES[recurrent.MEMORYLESS] and not learned.greedy
    assert (chances[:, legal] > 0).all() and len(np.unique(chances[:, 0])) > 3  # they hang on what is seen
    sharper = rows.chances(game, found.bank, learned, 3.0)
    cubes = chances.astype(np.float64) ** 3
    np.testing.assert_allclose(sharper, cubes / cubes.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-7)
    verbs = table(game.dims)[0]
    looks = np.isin(verbs, (MONITOR, INVESTIGATE))
    np.testing.assert_array_equal(rows.acting(game, np.arange(len(verbs))), ~looks)
    write(game.dims.restore, recurrent.SEEING)
    with pytest.raises(
        ValueError, match=r"view = 'seeing' .* train one with jaxsim-soc train-policy --view memoryless"
    ):
        rows.teacher_of(game, path)
    write(not game.dims.restore, recurrent.MEMORYLESS)
    with pytest.raises(ValueError, match=r"trained with.* RESTORE; train one"):
        rows.teacher_of(game, path)

"""The desk and its tools: the episodes of `replay`, nothing hidden in an answer, and TRL's own loop over them."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from worlds import HIDDEN

from grpo.playing.choices import ALWAYS_ASK, ON_CHANGE
from jaxsim import replays
from jaxsim.types import MONITOR
from prompting.render import LAYOUTS
from serving.desk import Desk, changed, start_of
from serving.tools import SocTools

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = "insider_repo_pivot_hardened"
SMALL = {"entities": 12, "scenario": SCENARIO}
TOOLS = ["block_egress", "investigate", "isolate_asset", "patch_asset", "restore", "revoke_identity", "wait"]


@pytest.fixture(scope="module")
def tools() -> SocTools:
    return SocTools(**SMALL)


def targets(desk: Desk) -> dict[str, str]:
    """One of each tool."""
    assert desk.game is not None
    return {verb.lower(): str(name) for verb, name in desk.game.inventory.actions if name}


def test_an_episode_is_the_one_that_replay_plays(tools: SocTools) -> None:
    """By every tool, twice in the same instance; who stops playing waits to the end, and is paid the whole return."""
    returns = []
    for _ in range(2):
        shown = tools.reset(seed=7, episode=3, prompt=[{"role": "user", "content": ""}], difficulty=2)
        assert "Tick 0 of 80" in shown and "restore" in shown and "git-monorepo 90" in shown
        for name, target in targets(tools.desk).items():
            assert getattr(tools, name)(target).startswith("New since tick ")
        assert 6 <= len(tools.desk.actions) < 80
        returns.append(tools.get_reward())
    _, _, again = replays.play_record(tools.record)
    assert returns[0] == returns[1] == pytest.approx(float(again.reward.sum()), abs=1e-4)
    np.testing.assert_array_equal(np.asarray(tools.desk.rewards, np.float32), again.reward)
    assert tools.desk.outcome()["episode_return"] == pytest.approx(returns[0], abs=1e-4)


def test_the_answers_together_tell_what_the_whole_view_tells(tools: SocTools) -> None:
    """Every alert and verdict is told in exactly one answer, at the tick that it came; so is every control."""
    tools.reset(seed=11)
    desk, rng = tools.desk, np.random.default_rng(2)
    told: list[tuple[Any, ...]] = []
    seen: set[tuple[Any, ...]] = set()
    while not desk.done:
        before, legal = desk.view, list(desk.game.inventory.actions.values())
        desk.act(int(rng.choice(legal)) if rng.random() < 0.4 else MONITOR, 80)
        now, new = desk.view, changed(before, desk.view)
        told += [("alert", *x[:4], now.tick - x[4]) for x in new.alerts]
        told += [("verdict", *x[:3], now.tick - x[3]) for x in new.forensics]
        seen |= {("alert", *x[:4], now.tick - x[4]) for x in now.alerts}
        seen |= {("verdict", *x[:3], now.tick - x[3]) for x in now.forensics}
        assert {m: now.marks.get(m, []) for m in {*before.marks, *now.marks}} == {
            m: before.marks.get(m, []) for m in {*before.marks, *now.marks}
        } | new.marks
        assert desk.done or new.alerts or new.forensics or new.marks
    assert len(told) >= len(set(told)) > 10 and set(told) == seen


def test_an_episode_fits_a_context(tools: SocTools) -> None:
    """Waiting from event to event takes a third of the text of asking at every tick, or less."""
    always = Desk(ALWAYS_ASK, 12)
    views = [always.reset(start_of({"scenario": SCENARIO, "seed": 5}))]
    while not always.done:
        always.act(MONITOR)
        views.append(always.text())
    answers = [tools.reset(seed=5)]
    while not tools.desk.done:
        answers.append(tools.wait())
    assert len(views) == 81 and len(answers) < 60
    assert sum(map(len, answers)) < sum(map(len, views)) / 5
    assert answers[-1].endswith("The episode is over.") and tools.desk.rewards == always.rewards


def test_a_wait_is_as_long_as_it_may_be_and_always_asking_steps_one_tick(tools: SocTools) -> None:
    tools.reset(seed=5)
    tools.wait(at_most=1)
    assert len(tools.desk.actions) == 1
    always = SocTools(ALWAYS_ASK, **SMALL)
    always.reset(seed=5)
    always.patch_asset("jump-host")
    always.patch_asset("jump-host")
    assert len(always.desk.actions) == 2
    tools.patch_asset("jump-host")
    tools.patch_asset("jump-host")  # nothing new comes of that
    assert len(tools.desk.actions) > 3


def test_whoever_says_monitor_is_asked_again_when_something_is_new(tools: SocTools) -> None:
    """As verifiers and `rollout_func` play: MONITOR is an answer among others. Once it was always one tick."""
    tools.reset(seed=5)
    answers = []
    while not tools.desk.done:
        answers.append(tools.desk.act(MONITOR).text)
    assert 5 < len(answers) < 60 and len(tools.desk.actions) == 80
    assert not [x for x in answers[:-1] if x.rstrip().endswith("No alerts")]


def test_no_answer_changes_with_anything_hidden(tools: SocTools) -> None:
    """With the hidden state of another episode in the place of this one's, what is told now is the same."""
    desk, other = tools.desk, Desk(ON_CHANGE, 12)
    tools.reset(seed=3)
    other.reset(start_of({"scenario": SCENARIO, "seed": 4}))
    rng = np.random.default_rng(3)
    differ = 0
    for _ in range(60):
        action = int(rng.choice(list(desk.game.inventory.actions.values()))) if rng.random() < 0.3 else MONITOR
        for one in (desk, other):
            one._tick(action)
        before, kept = desk.view, desk.lanes
        state = kept.state._replace(**{f: getattr(other.lanes.state, f) for f in HIDDEN})
        differ += not jax.tree.all(jax.tree.map(np.array_equal, state, kept.state))
        desk.lanes = kept._replace(state=state)
        assert desk._look() == before and all(desk.text(x) for x in LAYOUTS)
        desk.lanes = kept
    assert differ == 60


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.investigate("nowhere"), "INVESTIGATE of 'nowhere' is no action here; targets are git-monorepo"),
        (lambda t: t.isolate_asset("svc-test-runner"), "ISOLATE_ASSET of 'svc-test-runner' is no action here"),
        (lambda t: t.restore(["jump-host"]), "RESTORE of ['jump-host'] is no action here"),
        (lambda t: t.wait(0), "at_most = 0 is not possible"),
        (lambda t: t.wait("4"), "at_most = '4' is not possible"),
        (lambda t: t.reset(seed=-1), "seed = -1"),
        (lambda t: t.reset(scenario="/etc/passwd"), "scenario '/etc/passwd' is none that is built in"),
        (lambda t: t.reset(rules="soft"), "rules 'soft' are unknown"),
        (lambda _: SocTools(**SMALL).wait(), "no episode has begun; call reset first"),
        (lambda _: SocTools(**SMALL).record, "no episode has begun; call reset first"),
        (lambda _: SocTools(seeds=3), "seeds = 3: Extra inputs are not permitted"),
        (lambda _: SocTools("sometimes"), "asking 'sometimes' is unknown; choose one of always, on-change"),
        (lambda t: t.desk.outcome(), "the episode is not over"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_no_time_passes(tools: SocTools, call: Any, said: str) -> None:
    tools.reset(seed=1)
    with pytest.raises(ValueError) as caught:
        call(tools)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert tools.desk.actions == []


def test_once_it_is_over_every_tool_says_so(tools: SocTools) -> None:
    tools.reset(seed=1)
    tools.get_reward()
    for name, target in ({"wait": 1} | targets(tools.desk)).items():
        with pytest.raises(ValueError, match="the episode is over; call no more tools"):
            getattr(tools, name)(target)
    assert len(tools.desk.actions) == 80


def test_rules_without_restoring_say_so() -> None:
    tools = SocTools(entities=12, scenario=SCENARIO, rules="classic", reward="evidence")
    assert "restore" not in tools.reset(seed=1)
    with pytest.raises(ValueError, match="RESTORE of 'jump-host' is no action here; these rules do not have it"):
        tools.restore("jump-host")


def test_the_tools_are_those_that_a_chat_template_can_show() -> None:
    from transformers.utils import get_json_schema

    public = [n for n, _ in inspect.getmembers(SocTools, inspect.isfunction) if not n.startswith("_")]
    assert sorted({*public} - {"reset", "get_reward"}) == TOOLS
    for name in TOOLS:
        shown = get_json_schema(getattr(SocTools, name))["function"]
        assert shown["description"] and all(x["description"] for x in shown["parameters"]["properties"].values())


# Of the trainer's own use of transformers.
ITS_OWN = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated")

# --- TRL ------------------------------------------------------------------------------------------------------------


def trained(folder: Path, rows: list[dict[str, Any]], said: list[str], tokens: int, **options: Any) -> Any:
    """A trainer after one step of TRL's own loop over the rows, two episodes each."""
    from calling_models import calling
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = calling(said)
    args = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2 * len(rows),
        num_generations=2,
        max_completion_length=tokens,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=1,
    )
    trainer = GRPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **options
    )
    trainer.train()
    return trainer


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@ITS_OWN
@pytest.mark.usefixtures("silent")
def test_trls_loop_plays_whole_episodes_by_tools(tmp_path: Path) -> None:
    """A model that calls tools at random: episodes of the rows' seeds, paid what `replay` pays, instances reused."""
    from calling_models import tool_call

    said = [tool_call("wait"), tool_call("investigate", target="jump-host"), tool_call("isolate_asset", target="nix")]
    made: list[SocTools] = []

    def factory() -> SocTools:
        made.append(SocTools(**SMALL))
        return made[-1]

    rows = [{"prompt": [{"role": "user", "content": ""}], "seed": seed} for seed in (1, 2)]
    trainer = trained(tmp_path, rows, said, 700, environment_factory=factory)
    log = trainer.state.log_history[0]
    assert len(made) == 4 and sorted(t.desk.seed for t in made) == [1, 1, 2, 2]
    assert log["tools/call_frequency"] > 2 and 0.1 < log["tools/failure_frequency"] < 0.8
    assert sum(t.record["actions"].count("INVESTIGATE jump-host") for t in made) > 1
    returns = [float(replays.play_record(t.record)[2].reward.sum()) for t in made]
    assert log["reward"] == pytest.approx(np.mean(returns), abs=1e-3)
    assert log["rewards/SocTools/mean"] == pytest.approx(np.mean(returns), abs=1e-3)
    assert np.isfinite(log["grad_norm"]) and log["grad_norm"] > 0


@ITS_OWN
@pytest.mark.usefixtures("silent")
def test_trls_loop_plays_whole_episodes_by_words(tmp_path: Path) -> None:
    """`rollout_func`: one row a prompt, what the model said apart from what it was told, the same returns."""
    from serving.trl_rollout import episode_returns, rollout_func

    said = ['{"action": "MONITOR"}', '{"action": "PATCH_ASSET", "target": "jump-host"}', "Let me think."]
    roll, kept = rollout_func(**SMALL), []

    def watched(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        kept.append((prompts, roll(prompts, trainer)))
        return {k: list(v) if v else v for k, v in kept[-1][1].items()}

    rows = [{"prompt": json.dumps({"seed": seed})} for seed in (1, 2)]
    trainer = trained(tmp_path, rows, said, 700, rollout_func=watched, reward_funcs=episode_returns)
    ((prompts, out),) = kept
    assert len(prompts) == 4 == len(out["prompt_ids"]) == len(out["completion_ids"])
    decode = trainer.processing_class.decode
    for first, ids, mask in zip(out["prompt_ids"], out["completion_ids"], out["env_mask"], strict=True):
        assert "Tick 0 of 80" in decode(first) and decode(first).endswith("<|im_start|>assistant\n")
        assert len(ids) == len(mask) <= 700 and mask[0] == mask[-1] == 1
        own = [x for x, m in zip(ids, mask, strict=True) if m]
        assert {decode([x]) for x in own} <= {*said, "<|im_end|>"}
        told = decode([x for x, m in zip(ids, mask, strict=True) if not m])
        turns = sum(m > before for before, m in zip([0, *mask], mask, strict=False))
        assert told.count("New since tick") == turns - 1 > 1
    assert trainer.state.log_history[0]["reward"] == pytest.approx(np.mean(out["episode_return"]), abs=1e-3)


@ITS_OWN
@pytest.mark.usefixtures("silent")
def test_the_ten_lines_of_the_docs(tmp_path: Path) -> None:
    """With a tiny model in the place of Qwen's, for one step."""
    from calling_models import calling, tool_call

    page = (ROOT / "docs" / "connections.md").read_text("utf-8")
    (block,) = [x for x in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "GRPOTrainer" in x]
    folder = tmp_path / "model"
    for part in calling([tool_call("wait")]):
        part.save_pretrained(folder)
    small = f'output_dir="{tmp_path}", report_to="none", bf16=False, use_cpu=True, per_device_train_batch_size=2, '
    small += 'save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, num_generations=2'
    changes = {
        "Qwen/Qwen3-0.6B": str(folder),
        "num_generations=8": small,
        "max_steps=100": "max_steps=1",
        "8192": "700",
        "environment_factory=SocTools": "environment_factory=lambda: SocTools(entities=12)",
    }
    for before, after in changes.items():
        assert before in block
        block = block.replace(before, after)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["trainer"].state.log_history[0]["tools/call_frequency"] > 2


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("hello", "prompt 'hello' names no episode"), ('{"seeds": 1}', "seeds = 1"), ("[1]", "names no episode")],
)
def test_a_prompt_that_names_no_episode_is_refused(prompt: str, said: str) -> None:
    from types import SimpleNamespace

    from serving.trl_rollout import rollout_func

    with pytest.raises(ValueError, match=said):
        rollout_func(**SMALL)([prompt], SimpleNamespace(use_vllm=False))
    with pytest.raises(ValueError, match="set use_vllm=False"):
        rollout_func(**SMALL)([prompt], SimpleNamespace(use_vllm=True))

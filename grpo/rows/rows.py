"""Training rows: a prompt, an integer id into a bank of states, and what every legal action is worth there."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

import prompting
import scenarios
from grpo.playing import play
from grpo.rows import bank as banks
from grpo.rows import credit as credits
from grpo.rows import surrogate
from grpo.rows.bank import Bank
from grpo.rows.beliefs import beliefs
from grpo.rows.credit import Credit
from jaxsim import env, noise, one_episode, recurrent, reward
from jaxsim.actions import table
from jaxsim.audit import checkpoint
from jaxsim.compile import dims_of
from jaxsim.env import make_params
from jaxsim.noise import draw
from jaxsim.policies import DEFAULT_EVIDENCE, EVIDENCE, Policy
from jaxsim.recurrent import Learned
from jaxsim.rules import restores
from jaxsim.types import CONFIRMED, CUT_OFF, EGRESS_BLOCKED, INVESTIGATE, MONITOR, PATCH_ASSET, PATCHED, Dims, Params
from jaxsim_soc import json_lines
from jaxsim_soc.write import whole
from prompting import Inventory

REFERENCE_EPISODES = 64  # per campaign, of the behaviour that the beliefs are drawn from
SETS = np.asarray([-1, -1, CUT_OFF, EGRESS_BLOCKED, PATCHED, CUT_OFF, -1])  # the mark that a verb sets, -1 for none


class Campaigns(NamedTuple):
    """P campaigns padded to the same sizes."""

    names: tuple[str, ...]
    env: env.Env
    params: Params  # leading axis P
    inventories: tuple[Inventory, ...]

    @property
    def dims(self) -> Dims:
        return self.env.dims

    def of(self, p: int) -> Params:
        """The parameters of one campaign."""
        one: Params = jax.tree.map(lambda x: x[p], self.params)
        return one


class Rows(NamedTuple):
    """R rows. Row r's prompt shows what its state does, and nothing more."""

    bank: Bank  # leading axis (R,)
    prompts: list[str]  # R
    credit: Credit  # (R, A)
    step_reward: np.ndarray  # (R, A) float32, points of the next tick alone
    informative: np.ndarray  # (R,) bool, the actions differ beyond chance


def campaigns(names: Sequence[str], rules: str, reward_name: str) -> Campaigns:
    """Load and compile campaigns. Raises ScenarioError for one that does not exist."""
    many = [scenarios.load(name) for name in names]
    dims = dims_of(many, restores(rules))
    params = banks.stack([make_params(s, dims, rules, reward_name, "any") for s in many])
    return Campaigns(
        tuple(s.id for s in many), env.Env(dims), params, tuple(prompting.inventory(s, dims) for s in many)
    )


# --- states ---------------------------------------------------------------------------------------------------------


# The member of the evidence family that contains at once, and whose every action its prompt explains: it neither counts
# nor remembers. The learned policy is worth more, but what it remembers cannot be shown to a beginner.
Teacher = tuple[Policy, Any]  # and its parameters
TEACHER: Teacher = (
    EVIDENCE,
    DEFAULT_EVIDENCE._replace(investigate_at=np.float32(2), contain_at=np.float32(0.5), window=np.int32(1)),
)

# The member that only waits where nothing is confirmed: it plays like `monitor`, without another program to compile.
WAITS = DEFAULT_EVIDENCE._replace(investigate_at=np.float32(np.inf), contain_at=np.float32(np.inf))


def from_teacher(game: Campaigns, policy: Teacher, many: int, seed: int) -> Bank:
    """At most `many` states from a policy's play, half of them, if there are so many, where it sets or lifts a control.

    `Bank.action` is what it did. Waiting is most of the work, and would be all that a beginner learns.
    """
    episodes = max(1, 4 * many // len(game.names))
    every = banks.collect_heuristic(game.env, game.params, *policy, noise.root(seed), episodes, 16)
    acts = acting(game, every.action)
    rng = np.random.default_rng(seed)
    busy, idle = (rng.permutation(np.flatnonzero(x)) for x in (acts, ~acts))
    busy = busy[: many // 2]
    return banks.take(every, np.sort(np.concatenate([busy, idle[: many - len(busy)]])))


def teacher_of(game: Campaigns, path: Path) -> Teacher:
    """The policy of a file of `train-policy --view memoryless`, which draws its actions, as `from_teacher` wants it.

    Raises ValueError, naming file and remedy, for another view, and for a game with other actions.
    """
    made = checkpoint.load(path)
    remedy = "train one with jaxsim-soc train-policy --view memoryless, and the rules of this run"
    if made.view != recurrent.MEMORYLESS:
        raise ValueError(f"{path}: view = {made.view!r} remembers what no prompt shows, or sees other things; {remedy}")
    if made.restores != game.dims.restore:
        raise ValueError(f"{path}: trained with{'' if made.restores else 'out'} RESTORE; {remedy}")
    return recurrent.POLICIES[made.view], made.learned._replace(greedy=np.bool_(False))


def chances(game: Campaigns, bank: Bank, teacher: Learned, sharpness: float = 1.0) -> np.ndarray:
    """(R, A) float32, a memoryless teacher's probability of every action at each row; 0 where it is not legal.

    To the power of `sharpness`, and then made to add up to 1 again.
    """
    found = surrogate.chances(game.dims, game.params, bank, teacher)
    raised = (found / found.max(axis=1, keepdims=True)) ** np.float32(sharpness)
    sharpened: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return sharpened


def acting(game: Campaigns, actions: Array) -> np.ndarray:
    """(R,) bool, which of (R,) actions set or lift a control."""
    acts: np.ndarray = table(game.dims)[0][np.asarray(actions)] > INVESTIGATE
    return acts


def episodes_of(campaign: int, episodes: int, seed: int) -> jax.Array:
    """(episodes,) keys of the play of `from_model` in a campaign, by its number."""
    return one_episode.episode_keys(jax.random.fold_in(noise.root(seed), campaign), episodes)


def from_model(
    game: Campaigns,
    respond: Any,
    episodes: int,
    many: int,
    seed: int,
    *,
    layout: str,
    asking: str,
    pasts: Sequence[Sequence[play.Turn]],
    opening: Any = lambda campaign, prompt: None,
    advance: Any = lambda campaign, turn: None,
) -> tuple[Bank, list[play.Played]]:
    """At most `many` states at which a model was asked in its own play, and that play.

    `respond(campaign)` gives the play's `Respond`; `pasts` are turns of each campaign that are known already;
    `opening` and `advance` as for `play.play`, with the campaign before the prompt or the turn.
    """
    parts: list[Bank] = []
    played = []
    for p, inventory in enumerate(game.inventories):
        keys = episodes_of(p, episodes, seed)

        def watch(state: Any, obs: Any, asked: Sequence[int], prompts: Any, p: int = p) -> None:
            kept = jax.tree.map(lambda x: np.asarray(x)[list(asked)], state)
            none = np.full(len(asked), -1, np.int32)
            parts.append(Bank(kept, np.full(len(asked), p, np.int32), np.asarray(asked, np.int32), none))

        played.append(
            play.play(
                game.env,
                game.of(p),
                inventory,
                keys,
                respond(p),
                layout=layout,
                asking=asking,
                opening=partial(opening, p),
                past=pasts[p],
                advance=partial(advance, p),
                watch=watch,
            )
        )
    return _some(banks.concatenate(parts), many, seed), played


def _some(bank: Bank, many: int, seed: int) -> Bank:
    """At most `many` of the rows, chosen by the seed, in their order."""
    total = len(bank.params_index)
    if total <= many:
        return bank
    return banks.take(bank, np.sort(np.random.default_rng(seed).choice(total, many, replace=False)))


# --- credit ---------------------------------------------------------------------------------------------------------


def credited(
    game: Campaigns,
    bank: Bank,
    successor: Teacher = (EVIDENCE, DEFAULT_EVIDENCE),
    *,
    futures: int,
    least_z: float,
    seed: int,
    layout: str,
    reference: int = REFERENCE_EPISODES,
) -> Rows:
    """The rows of a bank: prompts, and return-to-go averaged over what the defender cannot tell apart.

    After the action, the `successor` plays on. It should be whoever is to learn from it: one that plays better cleans
    up after an action that was put off, so that waiting is worth nearly as much as acting.
    """
    key, (policy, parameters) = noise.root(seed), successor
    if reference:
        behaviours = [
            banks.collect_heuristic(game.env, game.params, EVIDENCE, member, noise.root(seed + 1), reference, 8)
            for member in (WAITS, DEFAULT_EVIDENCE)
        ]
        found = beliefs(
            game.dims, game.params, bank, banks.concatenate(behaviours), policy, parameters, key=key, futures=futures,
            most=16,
        )  # fmt: skip
    else:
        found = credits.returns_to_go(game.dims, game.params, bank, policy, parameters, key=key, futures=futures)
    return Rows(
        bank,
        prompts_of(game, bank, layout),
        found,
        step_rewards(game, bank, seed),
        credits.informative(found, least_z) if least_z > 0 else np.ones(len(bank.params_index), bool),
    )


def prompts_of(game: Campaigns, bank: Bank, layout: str) -> list[str]:
    """The user message of each state."""
    obs = banks.observe(game.dims, game.params, bank)
    texts = [""] * len(bank.params_index)
    for p, inventory in enumerate(game.inventories):
        mine = np.flatnonzero(bank.params_index == p)
        if len(mine):
            shown = prompting.render(jax.tree.map(lambda x, mine=mine: np.asarray(x)[mine], obs), inventory, layout)
            for r, text in zip(mine.tolist(), shown, strict=True):
                texts[r] = text
    return texts


def inventory_of(game: Campaigns, rows: Rows, row: int) -> Inventory:
    """That of a row's campaign."""
    return game.inventories[int(rows.bank.params_index[row])]


def chat_of(game: Campaigns, rows: Rows, row: int) -> list[dict[str, str]]:
    """The messages of a row."""
    return prompting.chat(rows.prompts[row], inventory_of(game, rows, row))


@partial(jax.jit, static_argnames=("dims",))
def _one_step(dims: Dims, params: Params, bank: Bank, rows: jax.Array, key: jax.Array) -> jax.Array:
    def one(state: Any, p: jax.Array, r: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda x: x[p], params)
        block = draw(jax.random.fold_in(key, r))

        def after(action: jax.Array) -> jax.Array:
            _, signals = env.transition(dims, state, action, block, own)
            return reward.total(reward.channels(signals, own.reward), own.reward)

        return jax.vmap(after)(jnp.arange(dims.actions, dtype=jnp.int32))

    steps: jax.Array = jax.vmap(one)(bank.state, bank.params_index, rows)
    return steps


def step_rewards(game: Campaigns, bank: Bank, seed: int) -> np.ndarray:
    """(R, A) points of the tick that each action starts, and of nothing after it; one draw of the luck a row."""
    many, key = len(bank.params_index), noise.root(seed)
    steps = (_one_step(game.dims, game.params, banks.take(bank, some), some, key) for some in banks.blocks(many))
    return np.concatenate([np.asarray(x) for x in steps])[:many]


def labels(rows: Rows) -> np.ndarray:
    """(R,) int32, the action to show a beginner at each row: what was done there; -1 where that should not be learned.

    That is where it is worth less than waiting by two standard errors: the evidence deceives in this one state. To show
    waiting instead would teach that such evidence means nothing.
    """
    q, se, at = rows.credit.q, rows.credit.se, np.arange(len(rows.prompts))
    done = np.asarray(rows.bank.action)
    deceived = q[at, done] - q[:, MONITOR] < -2 * np.hypot(se[at, done], se[:, MONITOR])
    return np.where((done < 0) | deceived, -1, done).astype(np.int32)


def in_force(game: Campaigns, bank: Bank) -> np.ndarray:
    """(R, A) bool: containments and patches that would repeat a control in force. A rebuild is no repeated patch."""
    verbs, entities = table(game.dims)
    row, entity = SETS[verbs], np.maximum(entities, 0)
    marks = np.asarray(bank.state.marks)
    rebuilds = np.asarray(game.params.rules.eradication)[bank.params_index][:, None] & marks[:, CUT_OFF][:, entity]
    return (row >= 0) & marks[:, np.maximum(row, 0), entity] & ~(rebuilds & (verbs == PATCH_ASSET))


def confirmed(game: Campaigns, bank: Bank) -> np.ndarray:
    """(R, A) bool: actions on a confirmed target."""
    _, entities = table(game.dims)
    marks = np.asarray(bank.state.marks)[:, CONFIRMED]
    return np.where(entities >= 0, marks[:, np.maximum(entities, 0)], False)


# --- files ----------------------------------------------------------------------------------------------------------


def save(folder: Path, rows: Rows, game: Campaigns) -> None:
    """Write rows into a folder, each file whole or not at all; `credit.npz` last, so that it says: complete."""
    folder.mkdir(parents=True, exist_ok=True)
    banks.save(folder / "bank.npz", rows.bank, game.dims, game.params)
    lines = json_lines.encode({"id": i, "prompt": text} for i, text in enumerate(rows.prompts))
    whole(folder / "prompts.jsonl", lambda file: file.write(lines))
    arrays = {**rows.credit._asdict(), "step_reward": rows.step_reward, "informative": rows.informative}
    whole(folder / "credit.npz", lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def load(folder: Path, game: Campaigns) -> Rows | None:
    """The rows of a folder, or None when they are not complete. Raises ValueError for damaged files."""
    if not (folder / "credit.npz").exists():
        return None
    bank = banks.load(folder / "bank.npz", game.dims, game.params)
    try:
        prompts = [line["prompt"] for line in json_lines.read(folder / "prompts.jsonl")]
        with np.load(folder / "credit.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = Credit(*(arrays[name] for name in Credit._fields))
        rows = Rows(bank, prompts, found, arrays["step_reward"], arrays["informative"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{folder}: damaged rows ({error}); delete the folder to collect them again") from None
    if {len(prompts), len(rows.informative), len(found.q)} != {len(bank.params_index)}:
        raise ValueError(f"{folder}: bank, prompts and credit have different lengths; delete the folder")
    return rows

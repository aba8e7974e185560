"""Episodes of a Gymnasium environment: by a plan, that reads nothing, or by a policy, that reads.

An episode is (environment, seed, actions). It ends where the environment says so, or is cut off after `horizon` steps.
Actions are rows of a table: those of a Discrete space in order, those of a MultiDiscrete one as a flat product.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import iterate

from jaxsim.check import said

Policy = Callable[[Any, dict[str, Any]], Any]  # (observation, info) -> an action of the environment
Act = Callable[[int, Any, Any], int]  # (step, observation, info) -> a row of the table

HORIZON = 200  # steps after which an episode is cut off where the environment sets no limit
MOST_ACTIONS = 4096
TOLERANCE = 1e-6  # of returns that are equal, relative and absolute


class Refused(ValueError):
    """Why an environment, a policy or a file cannot be audited, in one line."""


class Game(NamedTuple):
    """What makes an environment again; plain data."""

    id: str
    kwargs: dict[str, Any]
    horizon: int  # steps of an episode, at most


class Played(NamedTuple):
    """Episodes played, J of them."""

    returns: np.ndarray  # (J,) float64, points, undiscounted
    lengths: np.ndarray  # (J,) int, steps
    ended: np.ndarray  # (J,) bool, by the environment; the others were cut off
    actions: list[list[int]]  # rows of the table
    last: list[bytes]  # the last observation of those that go on, b"" of those that are over


class World:
    """An environment to play in, and the steps that it has played.

    With `lanes` above 1 plans are played so many at a time by the environment's own vector environment.
    """

    def __init__(self, game: Game, lanes: int = 1) -> None:
        self.game = game
        self.single = made(game)
        self.table = table(self.single.action_space)  # (A, ...) actions as the environment takes them
        self.lanes = lanes
        self.many = vector(game, lanes) if lanes > 1 else None
        self.steps = 0


def game(id: str, kwargs: dict[str, Any], horizon: int | None) -> Game:
    """An environment with the horizon of its own, `horizon` where that is less, or HORIZON where neither is there."""
    env = made(Game(id, kwargs, 0))
    own = env.spec.max_episode_steps if env.spec else None
    env.close()
    return Game(id, kwargs, min(own or horizon or HORIZON, horizon or own or HORIZON))


def made(game: Game) -> gymnasium.Env[Any, Any]:
    """The environment, cut off at its horizon if it has one. Raises Refused when there is none such."""
    try:
        return gymnasium.make(game.id, max_episode_steps=game.horizon or None, disable_env_checker=True, **game.kwargs)
    except Exception as error:  # an environment may raise anything
        raise Refused(f"environment {said(game.id)} cannot be made: {reason(error)}; see gymnasium.pprint_registry(), "
                      "and --import for what registers it") from None  # fmt: skip


def vector(game: Game, lanes: int) -> Any:
    """The environment's own vector environment. Raises Refused when it has none."""
    try:
        return gymnasium.make_vec(game.id, num_envs=lanes, vectorization_mode="vector_entry_point", **game.kwargs)
    except Exception as error:
        raise Refused(f"environment {said(game.id)} has no vector environment of its own: {reason(error)}; leave "
                      "--lanes out") from None  # fmt: skip


def table(space: spaces.Space[Any]) -> np.ndarray:
    """All actions of a space, (A, ...) of its dtype. Raises Refused when they cannot be counted."""
    if isinstance(space, spaces.Discrete):
        many, rows = int(space.n), np.arange(min(space.n, MOST_ACTIONS + 1)) + space.start
    elif isinstance(space, spaces.MultiDiscrete):
        many = math.prod(int(n) for n in space.nvec.ravel())
        flat = np.unravel_index(np.arange(min(many, MOST_ACTIONS + 1)), space.nvec.ravel())
        rows = np.stack(flat, axis=1).reshape(-1, *space.nvec.shape) + space.start
    else:
        raise Refused(f"the actions are {said(space)}, which cannot be counted; audit an environment whose actions are "
                      "Discrete or MultiDiscrete, or wrap it so that they are")  # fmt: skip
    if many > MOST_ACTIONS:
        raise Refused(f"there are {many} actions, more than {MOST_ACTIONS}; wrap the environment so that it has fewer")
    found: np.ndarray = rows.astype(space.dtype)
    return found


def row(space: Any, action: Any) -> int | None:
    """The place of an action in the table of its space; None when it is no action."""
    try:
        given = np.asarray(action)
    except ValueError:  # lists of different lengths
        return None
    if given.dtype.kind not in "iu" or given.shape != space.shape:
        return None
    sizes = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1)
    index = np.reshape(given.astype(np.int64) - space.start, -1)
    if np.any(index < 0) or np.any(index >= sizes):
        return None
    return int(np.ravel_multi_index(tuple(index), tuple(sizes)))


# --- playing --------------------------------------------------------------------------------------------------------


def play_plans(world: World, plans: np.ndarray, seeds: list[int], signed: bool = False) -> Played:
    """Play plan j, of (J, D) rows of the table, in the episode of seed j, for D steps at most.

    `signed` fills in `last`. Raises Refused when the environment raises, or pays what is no number.
    """
    if world.many is None:
        pairs = zip(plans.tolist(), seeds, strict=True)
        return gathered([_play(world, following(plan), seed, len(plan), signed) for plan, seed in pairs])
    starts = range(0, len(plans), world.lanes)
    at = [slice(i, i + world.lanes) for i in starts]
    return gathered([e for part in at for e in _in_step(world, world.many, plans[part], seeds[part], signed)])


def play_policy(world: World, reader: Callable[[], Policy], seeds: list[int]) -> Played:
    """Play a policy, which `reader` makes anew for every episode, in the single environment."""
    return gathered([_play(world, acting(world, reader, seed), seed, world.game.horizon) for seed in seeds])


def play_random(world: World, seeds: list[int]) -> Played:
    """Play every action with the same probability; the draws of an episode are those of its seed."""
    drawn = [np.random.default_rng((1, s)).integers(len(world.table), size=world.game.horizon) for s in seeds]
    return play_plans(world, np.stack(drawn), seeds)


class Episode(NamedTuple):
    """One episode; see `Played`."""

    rewards: list[float]
    actions: list[int]
    ended: bool
    last: bytes


def gathered(done: list[Episode]) -> Played:
    """Episodes as arrays."""
    return Played(
        np.asarray([sum(e.rewards) for e in done], np.float64),
        np.asarray([len(e.actions) for e in done], np.int64),
        np.asarray([e.ended for e in done], bool),
        [e.actions for e in done],
        [e.last for e in done],
    )


def following(plan: list[int]) -> Act:
    """A plan for one episode."""
    return lambda t, obs, info: plan[t]


def acting(world: World, reader: Callable[[], Policy], seed: int) -> Act:
    """A policy for one episode, whose actions are rows of the table."""
    space = world.single.action_space
    try:
        policy = reader()
    except Exception as error:
        raise Refused(f"the policy of an episode cannot be made: {reason(error)}; mend it") from error

    def act(t: int, obs: Any, info: Any) -> int:
        try:
            action = policy(obs, info)
            found = row(space, action)
        except Exception as error:
            raise Refused(f"the policy raised at step {t} of seed {seed}: {reason(error)}; mend it") from error
        if found is None:
            raise Refused(f"the policy gave {said(action)} at step {t} of seed {seed}; give an action of {said(space)}")
        return found

    return act


def _play(world: World, act: Act, seed: int, steps: int, signed: bool = False) -> Episode:
    env, rewards, over, ended = world.single, list[float](), False, False
    actions: list[int] = []
    try:
        obs, info = env.reset(seed=seed)
        for t in range(steps):
            actions.append(act(t, obs, info))
            obs, reward, terminated, truncated, info = env.step(world.table[actions[-1]])
            rewards.append(paid(reward, t, seed))
            if over := bool(terminated or truncated):
                # Cut off at the horizon by the environment's own wrapper or here: one and the same.
                ended = bool(terminated) or t + 1 < world.game.horizon
                break
    except Refused:
        raise
    except Exception as error:  # an environment may raise anything
        where = f"at action {world.table[actions[-1]].tolist()} of step {len(actions) - 1}" if actions else "in reset"
        raise Refused(f"environment {said(world.game.id)} raised {where} of seed {seed}: {reason(error)}; an audit "
                      "plays any action at any time: let it end or punish what is not allowed") from error  # fmt: skip
    world.steps += len(actions)
    return Episode(rewards, actions, ended, signature(obs) if signed and not over else b"")


def _in_step(world: World, envs: Any, plans: np.ndarray, seeds: list[int], signed: bool) -> list[Episode]:
    """As many plans as there are lanes, or fewer, all a step at a time; a lane that is over is no longer looked at."""
    many, idle = len(plans), world.lanes - len(plans)
    plans = np.concatenate([plans, np.repeat(plans[:1], idle, axis=0)])
    rewards: list[list[float]] = [[] for _ in range(many)]
    going, ended = np.ones(many, bool), np.zeros(many, bool)
    try:
        obs, _ = envs.reset(seed=[*seeds, *seeds[:1] * idle])
        for t in range(plans.shape[1]):
            obs, reward, terminated, truncated, _ = envs.step(world.table[plans[:, t]])
            for j in np.flatnonzero(going).tolist():
                rewards[j].append(paid(reward[j], t, seeds[j]))
            over = going & (terminated | truncated)[:many]
            ended |= over & (terminated[:many] | (t + 1 < world.game.horizon))
            going &= ~over
            if not going.any():
                break
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"environment {said(world.game.id)} raised in step with others: {reason(error)}; leave --lanes "
                      "out to see where") from error  # fmt: skip
    world.steps += sum(map(len, rewards))
    rows = list(iterate(envs.observation_space, obs)) if signed else []
    last = [signature(x) if goes else b"" for x, goes in zip(rows, going, strict=False)] or [b""] * many
    return [Episode(rewards[j], plans[j, : len(rewards[j])].tolist(), bool(ended[j]), last[j]) for j in range(many)]


def paid(reward: Any, t: int, seed: int) -> float:
    """A reward as a number."""
    try:
        value = float(reward)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise Refused(f"the environment paid {said(reward)} at step {t} of seed {seed}; a reward is a finite number")
    return value


def signature(obs: Any) -> bytes:
    """Equal for equal observations."""
    return b"|".join(np.asarray(x).tobytes() for x in jax.tree.leaves(obs))


def reason(error: BaseException) -> str:
    """An exception as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.300}" if text else type(error).__name__


# --- is it the same episode again? ----------------------------------------------------------------------------------


def check(world: World, seeds: list[int]) -> bool:
    """Play some episodes again, in another order and in a fresh environment. Whether seeds make a difference.

    Raises Refused when the same seed and actions do not give the same episode.
    """
    plans = np.random.default_rng(0).integers(len(world.table), size=(len(seeds), world.game.horizon))
    plans[::2] = plans[::2, :1]  # one action at every step often lasts longer than random play
    alone = World(world.game)
    first = play_plans(alone, plans, seeds, signed=True)
    back = play_plans(alone, plans[::-1], seeds[::-1], signed=True)
    again = Played(back.returns[::-1], back.lengths[::-1], back.ended[::-1], back.actions[::-1], back.last[::-1])
    fresh = play_plans(World(world.game), plans, seeds, signed=True)
    for other, how, remedy in (
        (again, "played again", "let reset(seed=...) begin all anew, state and randomness"),
        (fresh, "in another such environment", "let all randomness come from self.np_random"),
        (play_plans(world, plans, seeds, signed=True), "in step with others", "leave --lanes out"),
    ):
        for j in np.flatnonzero(~same(first, other))[:1].tolist():
            a, b = (f"return {p.returns[j]:g} in {p.lengths[j]} steps" for p in (first, other))
            b = "another observation" if a == b else b
            raise Refused(f"environment {said(world.game.id)} is not deterministic given its seed: of seed {seeds[j]} "
                          f"the same actions made {a}, and {b} {how}; {remedy}")  # fmt: skip
    alike = (play_plans(alone, np.repeat(p[None], len(seeds), axis=0), seeds, signed=True) for p in plans[:2])
    return any(len({*zip(p.returns.tolist(), p.lengths.tolist(), p.last, strict=True)}) > 1 for p in alike)


def same(one: Played, two: Played) -> np.ndarray:
    """(J,) bool: equal episodes; returns may differ by rounding."""
    shown = np.asarray([a == b for a, b in zip(one.last, two.last, strict=True)], bool)
    return shown & (one.lengths == two.lengths) & np.isclose(one.returns, two.returns, rtol=TOLERANCE, atol=TOLERANCE)


def seeds_of(seed: int, parts: Iterable[int]) -> list[list[int]]:
    """Seeds of episodes, none twice, in parts of the given sizes."""
    sizes = list(parts)
    drawn = np.random.default_rng(seed).choice(2**31, size=sum(sizes), replace=False)
    ends = np.cumsum(sizes)[:-1]
    return [part.tolist() for part in np.split(drawn, ends)]


# --- files ----------------------------------------------------------------------------------------------------------

FIELDS = {"gymnasium": str, "environment": str, "kwargs": dict, "horizon": int, "seed": int, "actions": list}


def witness(world: World, played: Played, j: int, seed: int) -> dict[str, Any]:
    """Episode j as a record that `replay` plays."""
    return {
        "gymnasium": gymnasium.__version__,
        "environment": world.game.id,
        "kwargs": world.game.kwargs,
        "horizon": world.game.horizon,
        "seed": seed,
        "actions": world.table[played.actions[j]].tolist(),
        "return": float(played.returns[j]),
    }


def read_witness(text: str) -> dict[str, Any]:
    """A record. Raises Refused when it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"it is no JSON: {reason(error)}; give a witness of an audit") from None
    fields = FIELDS | {"return": (int, float)}
    for name, kind in fields.items():
        found = record.get(name) if isinstance(record, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise Refused(f"{name} = {said(found)} is not possible; give a witness of an audit")
    return dict(record)


def replay(record: dict[str, Any]) -> list[tuple[Any, float]]:
    """(action, reward) of every step. Raises Refused when it is not the episode that was recorded."""
    world = World(Game(record["environment"], record["kwargs"], record["horizon"]))
    rows = [row(world.single.action_space, action) for action in record["actions"]]
    if None in rows:
        bad = record["actions"][rows.index(None)]
        raise Refused(f"actions hold {said(bad)}; give actions of {said(world.single.action_space)}")
    played = _play(world, following([r for r in rows if r is not None]), record["seed"], len(rows))
    total, steps = sum(played.rewards), len(played.rewards)
    if steps < len(rows) or not math.isclose(total, record["return"], rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise Refused(f"return {total:g} in {steps} steps is not that recorded, {record['return']:g} in {len(rows)}; "
                      f"play it with gymnasium {record['gymnasium']} and the environment as it was")  # fmt: skip
    return list(zip(record["actions"], played.rewards, strict=True))

"""Whole episodes for the console: what was true beside what was seen, tick by tick, as plain data."""

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import prompting
import scenarios
from jaxsim import BASELINES, SIMULATOR_VERSION, Env, Policy, noise, recurrent, replays
from jaxsim.check import MAX_SEED
from jaxsim.names import action_text, end_name, entity_names
from jaxsim.one_episode import episode_keys
from jaxsim.rollouts import rollout_many
from jaxsim.rules import PERSONALITIES
from jaxsim.soc import command as soc
from jaxsim.types import RUNNING, STATUSES, Dims
from scenarios import attack
from serving import sessions
from serving.messages import Refused, Start
from serving.sessions import Game

POLICIES = (*BASELINES, recurrent.SEEING)
LENGTH = 128  # ticks for which `replay` is compiled, or a multiple: most horizons are shorter
NETWORK = ("assets", "identities", "unlisted_entities")  # fields of an observation that never change


class Asked(BaseModel):
    """A game by names, as a replay record has them; what else a record holds is left alone."""

    model_config = ConfigDict(strict=True)

    scenario: str = Field(description="one of the catalogue")
    rules: str = Field(max_length=500)
    reward: str | dict[str, float | None]
    personality: str
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="none: drawn")
    episode: int = Field(default=0, ge=0, le=2**32 - 1)


class Watch(Asked):
    """An episode that a policy is to play."""

    policy: str = Field(description=f"one of {', '.join(POLICIES)}")


class Record(Asked):
    """A replay record."""

    version: str
    seed: int = Field(ge=0, le=MAX_SEED)
    actions: list[str]


class File(NamedTuple):
    """A network that the command line brings, in one of its queues."""

    path: str  # as a record names it
    scenario: scenarios.Scenario


Files = dict[str, File]  # by the scenario's id


def network(scenario: scenarios.Scenario) -> dict[str, Any]:
    """What everybody may know of a network: no stage of its attack."""
    return {
        "title": scenario.title,
        "horizon": scenario.horizon,
        "assets": [x.model_dump(include={"id", "kind", "segment", "criticality"}) for x in scenario.assets],
        "identities": [x.model_dump(include={"id", "role", "privilege"}) for x in scenario.identities],
    }


# --- episodes --------------------------------------------------------------------------------------------------------


def start_of(files: Files, asked: Asked) -> Start:
    """The same as sessions take it: a network of the command line as its text."""
    file = files.get(asked.scenario) or next((f for f in files.values() if f.path == asked.scenario), None)
    game = asked.model_dump(include={"rules", "reward", "personality", "seed", "episode"})
    which = {"scenario": asked.scenario} if file is None else {"upload": scenarios.dump(file.scenario)}
    return Start.model_validate(game | which)


def game_of(entities: int, files: Files, asked: Asked) -> Game:
    """What is to be played. Raises Refused."""
    start = start_of(files, asked)
    game = sessions.game_of_start(entities, start)
    file = files.get(game.scenario.id) if start.upload else None
    return game._replace(record=game.record | {"scenario": file.path}) if file else game


def replayed(entities: int, files: Files, record: Record) -> dict[str, Any]:
    """The episode of a record, as `jaxsim-soc replay` plays it. Raises Refused."""
    game, today, plan = _plan(entities, files, record)
    env, key = Env(game.inventory.dims), noise.root(record.seed)
    return told(game, today, replays.replay(env, game.params, key, record.episode, _padded(plan)))


def watched(entities: int, files: Files, watch: Watch, seed: int) -> dict[str, Any]:
    """The episode that a policy plays, as `jaxsim-soc evaluate` does. Raises Refused."""
    policy, parameters = chosen(watch)
    game = game_of(entities, files, watch)
    dims, keys = game.inventory.dims, episode_keys(noise.root(seed), 1, watch.episode)
    one = jax.tree.map(lambda x: np.asarray(x)[None], parameters)
    stats, trajectory = rollout_many(Env(dims), game.params, policy, one, keys, record=True)
    assert trajectory is not None
    played = trajectory.action[0, 0, : stats.length[0, 0]]
    texts = [action_text(int(a), game.scenario, dims) for a in played]
    asked = watch.model_dump() | {"version": SIMULATOR_VERSION, "seed": seed, "actions": texts}
    return replayed(entities, files, Record.model_validate(asked))


def chosen(watch: Watch) -> tuple[Policy, Any]:
    """A policy and its parameters. Raises Refused where there is none."""
    if watch.policy in BASELINES:
        return BASELINES[watch.policy]
    if watch.policy != recurrent.SEEING:
        raise Refused(422, f"policy {watch.policy[:60]!r} is unknown; choose one of {', '.join(POLICIES)}")
    try:
        from jaxsim.audit import checkpoint
    except ImportError:
        raise Refused(422, "a learned policy needs the package safetensors: pip install 'jaxsim-soc[bench]'") from None
    path = checkpoint.own(watch.rules, str(watch.reward), recurrent.SEEING)
    if path.parent != checkpoint.OWN or not path.is_file():
        raise Refused(
            422, f"no policy was learned for rules {watch.rules[:60]!r} and this reward; choose another policy"
        )
    made = checkpoint.load(path)
    return recurrent.POLICIES[made.view], made.learned


def exported(entities: int, files: Files, record: Record) -> bytes:
    """What `jaxsim-soc export-soc episode` writes of a record, as a zip file. Raises Refused."""
    game, today, plan = _plan(entities, files, record)
    env = Env(game.inventory.dims)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        soc.write_record(place, today, game.scenario, env, game.params, _padded(plan), soc.instant(soc.START))
        return zipped(sorted(place.iterdir()))


def zipped(paths: Iterable[Path]) -> bytes:
    """Files in a zip file, the same bytes for the same files."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _padded(plan: np.ndarray) -> np.ndarray:
    """A plan of a length that is compiled for all: waiting after its end changes nothing that `told` tells."""
    return np.pad(plan, (0, -len(plan) % LENGTH))


def _plan(entities: int, files: Files, record: Record) -> tuple[Game, dict[str, Any], np.ndarray]:
    """The game of a record, the record as one of today, and its plan. Raises Refused."""
    try:
        today = Record.model_validate(replays.of_today(record.model_dump(), "record"))
        game = game_of(entities, files, today)
        plan = replays.actions_of(today.actions[: game.scenario.horizon], game.scenario, game.inventory.dims)
    except ValueError as error:
        raise Refused(422, str(error)) from None
    return game, game.record | today.model_dump(include={"seed", "episode", "actions"}), plan


# --- as plain data ---------------------------------------------------------------------------------------------------


def told(game: Game, record: dict[str, Any], played: replays.Replay) -> dict[str, Any]:
    """All of an episode that was played; ticks after its end, or after the record's, are left out."""
    scenario, dims = game.scenario, game.inventory.dims
    state = played.state
    length = min(len(record["actions"]), int((state.end[:-1] == RUNNING).sum()))
    shown = jax.tree.map(lambda x: x[: length + 1], played.observation)
    texts, views = (prompting.render(shown, game.inventory, layout) for layout in ("compact", "json"))
    names = entity_names(scenario, dims)
    ticks = []
    for t, (text, view) in enumerate(zip(texts, views, strict=True)):
        seen = {k: v for k, v in json.loads(view).items() if k not in NETWORK}
        taken = [names[e] for e in np.flatnonzero(state.compromised[t])]
        status = [STATUSES[s] for s in state.status[t][: len(scenario.stages)]]
        row = {"tick": t, "text": text, "view": seen, "truth": {"compromised": taken, "stages": status}}
        if t:
            row |= {
                "action": action_text(int(played.action[t - 1]), scenario, dims),
                "reward": float(played.reward[t - 1]),
                "channels": {k: float(v[t - 1]) for k, v in played.channels._asdict().items()},
            }
        ticks.append(row)
    return {
        "record": record,
        "return": float(played.reward[:length].sum()),
        "end": end_name(scenario, int(state.end[length]), state.status[length]),
        "attack": bool(state.attack[0]),
        "personality": list(PERSONALITIES)[int(state.who[0])],
        "stages": _stages(scenario, dims, state.targets[0]),
        "ticks": ticks,
    }


def _stages(scenario: scenarios.Scenario, dims: Dims, targets: np.ndarray) -> list[dict[str, Any]]:
    """The stages, with the targets that they have in this episode; (2, S + B)."""
    names = entity_names(scenario, dims)
    return [
        {
            "id": x.id,
            "tactic": attack.tactics()[x.tactic],
            "technique": x.technique,
            "needs": [*x.prerequisites, *x.any_prerequisites],
            "loss": x.loss,
            "targets": [names[e] for e in targets[:, k] if e >= 0],
        }
        for k, x in enumerate(scenario.stages)
    ]

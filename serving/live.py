"""A language model that plays while somebody watches: a session like any other, told line by line.

It thinks in a thread of its own, one prompt at a time, so that nobody else waits for it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from grpo.model.errors import ModelError
from grpo.playing.aloud import Begin, Said
from grpo.playing.choices import ON_CHANGE
from grpo.playing.remote import RemoteError
from jaxsim.names import action_text
from prompting import Inventory
from serving.messages import Act, Answer, Refused
from serving.sessions import Sessions

SHOWN = 12  # of the likeliest actions
EVENTS = ("alerts", "forensics")
STILL = ("tick", *EVENTS)  # of an observation: what need not be compared


@dataclass
class Players:
    """The models that can be asked to play."""

    known: Mapping[str, Begin] = field(default_factory=dict)
    asking: str = ON_CHANGE
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "model"))


def news(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Whether a player's view has changed, as `play.play` means it, since the observation of a tick before."""
    if before is None or any(x["ticks_ago"] == 0 for name in EVENTS for x in now[name]):
        return True
    return any(before.get(name) != value for name, value in now.items() if name not in STILL)


def choices(said: Said, inventory: Inventory) -> dict[str, Any] | None:
    """The likeliest legal actions of a network with their chances among all legal ones, in falling order."""
    if said.chances is None:
        return None
    legal = float(said.chances.sum())  # the rest of the probability lies on words that are no legal answer
    share = said.chances / legal if legal > 0 else said.chances
    names = [" ".join(filter(None, key)) for key in inventory.actions]
    order = (-share).argsort(kind="stable")[:SHOWN]
    return {
        "likely": [[names[i], float(share[i])] for i in order],
        "others": [len(names) - len(order), max(0.0, 1.0 - float(share[order].sum()))],
        "legal": legal,
    }


async def played(
    sessions: Sessions,
    first: Answer,
    begin: Begin,
    players: Players,
    told: Callable[[dict[str, Any]], Any],
) -> AsyncIterator[str]:
    """Lines of JSON: the first view, each tick, in the end what `told` makes of the record; or an `error`.

    The session is closed when all is told, and when nobody listens any more.
    """
    loop, name = asyncio.get_running_loop(), first.session
    try:
        game = sessions.open[name].game
        assert game is not None
        inventory = game.inventory
        yield _line(tick=0, view=first.observation, text=first.text)
        think = await loop.run_in_executor(players.thread, begin, inventory, first.text)
        answer, before = first, None
        while not answer.done:
            began, said = time.perf_counter(), None
            if players.asking != ON_CHANGE or news(before, answer.observation):
                said = await loop.run_in_executor(players.thread, think, answer.text)
            took, before = time.perf_counter() - began, answer.observation
            answer = await sessions.step(name, Act(text=said.text) if said else Act(action="MONITOR"))
            session = sessions.open[name]
            yield _line(
                tick=len(session.actions),
                view=answer.observation,
                text=answer.text,
                reward=answer.reward,
                action=action_text(session.actions[-1], game.scenario, inventory.dims),
                words=said and said.text,
                choices=said and choices(said, inventory),
                seconds=took,
            )
        yield _line(episode=await loop.run_in_executor(sessions.simulator, told, sessions.record(name)))
    except Refused as error:
        yield _line(error=error.message)
    except (ModelError, RemoteError) as error:
        yield _line(error=" ".join(str(error).split())[:1000])
    finally:
        with suppress(Refused):
            sessions.close(name)


def _line(**told: Any) -> str:
    return json.dumps(told) + "\n"

"""The analyst's desk: one episode at a time in this process, told in words, for the loops of other people's trainers.

What is answered is what is new. Where it steps on change, time passes (MONITOR) until something is new, so that an
episode fits a context.
"""

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo.playing.choices import ASKING, ON_CHANGE
from jaxsim import check, lanes
from jaxsim.check import MAX_SEED
from jaxsim.lanes import Lanes
from jaxsim.names import action_text
from jaxsim.types import MONITOR, Params
from prompting import Inventory
from prompting.render import LAYOUTS, MARKS, View, views
from serving.messages import Refused, Start, checked
from serving.sessions import Game, Limits, game_of_start

NOT_BEGUN = "no episode has begun; call reset first"


class Told(NamedTuple):
    """What came of an action, and of the waiting after it."""

    text: str  # what is new
    reward: float  # points of these ticks
    done: bool


def changed(before: View, now: View) -> View:
    """What is new in a later view of the same episode, as a view of its own; a control that was lifted is empty."""
    passed = now.tick - before.tick
    alerts = [x for x in now.alerts if x[4] < passed]
    forensics = [x for x in now.forensics if x[3] < passed]
    marks = {
        mark: now.marks.get(mark, [])
        for mark in MARKS
        if (now.marks.get(mark), now.more.get(mark)) != (before.marks.get(mark), before.more.get(mark))
    }
    named = {name for x in alerts for name in x[1:3]} | {x[0] for x in forensics}
    return now._replace(
        attacker=None,
        alerts=alerts,
        forensics=forensics,
        marks=marks,
        more={mark: many for mark, many in now.more.items() if mark in marks},
        also=[x for x in now.also if x.name in named and x not in before.also],
    )


def brief(restores: bool) -> str:
    """What a model with tools is told of the game; `restores`: whether controls can be lifted under the rules."""
    until, more = ("restore", "\nrestore: lifts them again.") if restores else ("the end", "")
    return f"""You are a SOC analyst. Time passes in ticks of 30 minutes, and only when you call a tool.
wait: until something is new. investigate: forensics, sometimes wrong.
isolate_asset or revoke_identity: cut it off. Stops attack stages on it, costs its value every tick until {until}.
block_egress of an asset: stops data leaving through it, at less cost. patch_asset: attacks on it fail more often.{more}
Many alerts are false, and there may be no attack. Contain only what alerts and forensics point to. Stop data theft.
Call one tool at a time, until the episode is over.
"""


def start_of(given: Mapping[str, Any], ignoring: bool = False) -> Start:
    """The episode that these fields name, `ignoring` those that it has not. Raises ValueError for a bad one."""
    known = {k: v for k, v in given.items() if k in Start.model_fields and v is not None} if ignoring else given
    try:
        return checked(Start, known)
    except Refused as error:
        raise ValueError(error.message) from None


class Desk:
    """One player's episode. `asking`: whether an action is one tick, or time passes until something is new.

    `entities`: the most assets of a scenario, and the most identities. Raises ValueError for a bad argument.
    """

    def __init__(self, asking: str = ON_CHANGE, entities: int = Limits().entities) -> None:
        self.asking = check.known("asking", asking, ASKING)
        self.entities = check.whole("entities", entities, 1, 10_000)
        self.game: Game | None = None
        self.lanes: Lanes | None = None

    def load(self, start: Start) -> None:
        """Make ready what is played, and begin nothing. Raises ValueError for what cannot be played."""
        try:
            self.game = game_of_start(self.entities, start)
        except Refused as error:
            raise ValueError(error.message) from None

    def reset(self, start: Start) -> str:
        """Begin an episode; the first view, with the network. Raises ValueError for what cannot be played."""
        self.load(start)
        assert self.game is not None
        self.params: Params = jax.tree.map(lambda x: jnp.asarray(x)[None], self.game.params)
        self.seed = secrets.randbelow(MAX_SEED + 1) if start.seed is None else start.seed
        self.episode = start.episode
        at = np.asarray([self.seed], np.uint32), np.asarray([self.episode], np.uint32)
        self.lanes = lanes.begin(self.inventory.dims, self.params, *at)
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.done = False
        self.view = self._look()
        return self.text()

    @property
    def inventory(self) -> Inventory:
        """What the game's answers speak of. Raises ValueError before the first game."""
        if self.game is None:
            raise ValueError(NOT_BEGUN)
        return self.game.inventory

    def text(self, layout: str = "compact") -> str:
        """The whole view, as of `prompting.render`."""
        return LAYOUTS[layout].network(self.view.network) + LAYOUTS[layout].tick(self.view)

    def action(self, verb: str, target: Any = None) -> int:
        """An action of the table. Raises ValueError for what is none in this game."""
        actions = self.inventory.actions
        found = actions.get((verb, target)) if isinstance(target, str | None) else None
        if found is None:
            legal = [name for v, name in actions if v == verb]
            remedy = f"targets are {', '.join(map(str, legal))}" if legal else "these rules do not have it"
            raise ValueError(f"{verb} of {check.said(target)} is no action here; {remedy}")
        return found

    def act(self, action: int, at_most: int | None = None) -> Told:
        """Take an action, then wait while nothing is new: up to `at_most` ticks in all, or else as `asking` says.

        Raises ValueError before the first reset, and once the episode is over.
        """
        if self.lanes is None:
            raise ValueError(NOT_BEGUN)
        if self.done:
            raise ValueError("the episode is over; call no more tools")
        before, first = self.view, len(self.actions)
        if at_most is None:
            at_most = self.view.horizon if self.asking == ON_CHANGE else 1
        while True:
            self._tick(action)
            new = changed(before, self.view)
            passed = len(self.actions) - first
            if self.done or passed >= at_most or new.alerts or new.forensics or new.marks:
                break
            action = MONITOR
        text = f"New since tick {before.tick}:\n{LAYOUTS['compact'].tick(new)}"
        return Told(text + "\nThe episode is over." * self.done, sum(self.rewards[first:]), self.done)

    def finish(self) -> float:
        """The return of the episode, points, where whoever stopped playing waits to its end."""
        while not self.done:
            self._tick(MONITOR)
        return sum(self.rewards)

    def record(self) -> dict[str, Any]:
        """The episode so far as `jaxsim-soc replay` plays it; its seed tells whoever reads it all that is hidden."""
        if self.game is None or self.lanes is None:
            raise ValueError(NOT_BEGUN)
        played = [action_text(a, self.game.scenario, self.inventory.dims) for a in self.actions]
        return {**self.game.record, "seed": self.seed, "episode": self.episode, "actions": played}

    def outcome(self) -> dict[str, Any]:
        """How the episode went, as of `lanes.numbers`: hidden until it is over. Raises ValueError before."""
        if self.lanes is None or not self.done:
            raise ValueError("the episode is not over; play it to its end first")
        return lanes.numbers(lanes.outcomes(self.params, self.lanes), 0)

    def _tick(self, action: int) -> None:
        assert self.lanes is not None
        self.lanes, ticked = lanes.tick(
            self.inventory.dims, self.params, self.lanes, np.asarray([action], np.int32), np.ones(1, bool)
        )
        self.actions.append(action)
        self.rewards.append(float(ticked.reward[0]))
        self.done = bool(ticked.done[0])
        self.view = self._look()

    def _look(self) -> View:
        assert self.lanes is not None
        (view,) = views(lanes.observe(self.inventory.dims, self.params, self.lanes.state), self.inventory)
        return view

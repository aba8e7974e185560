"""Sessions: who plays what in which slot. Everything runs in one event loop but the simulator, which has a thread."""

import asyncio
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import prompting
import scenarios
from jaxsim import env, rules
from jaxsim.actions import INVALID
from jaxsim.check import MAX_SEED
from jaxsim.compile import check_fits
from jaxsim.names import action_text
from jaxsim.types import Dims, Params
from jaxsim.version import SIMULATOR_VERSION
from prompting import Inventory
from scenarios.generate import generate
from scenarios.load import in_queue
from serving.messages import Act, Answer, Generated, Refused, Start
from serving.pool import Job, Pool, Row

DEFAULT = "supply_chain_token_drift_hardened"
BUILT_IN = tuple(name for group in scenarios.GROUPS for name in scenarios.names(group))
STAGES, LAG, BENIGN = 32, 16, 16  # the most of a scenario that is played here
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)  # seconds, upper bounds of a histogram


class Limits(NamedTuple):
    """What a server allows."""

    sessions: int = 64  # at a time
    entities: int = 40  # the most assets of a scenario, and the most identities
    idle: float = 600.0  # seconds after which a session that nobody uses is closed
    body: int = 256 * 1024  # bytes of a request


class Game(NamedTuple):
    """What a session plays, ready for its slot."""

    scenario: scenarios.Scenario
    inventory: Inventory
    params: Params
    record: dict[str, Any]  # the beginning of a replay record


@dataclass
class Session:
    """One client's episode."""

    id: str
    pool: Pool
    slot: int
    used: float  # when, seconds of the monotonic clock
    game: Game | None = None
    seed: int = 0
    episode: int = 0
    actions: list[int] = field(default_factory=list)
    answer: Answer | None = None  # the last
    busy: bool = False
    closed: bool = False


@dataclass
class Counts:
    """What the metrics tell."""

    started: int = 0
    expired: int = 0
    episodes: int = 0
    ticks: int = 0
    batches: int = 0
    waited: list[int] = field(default_factory=lambda: [0] * (len(LATENCIES) + 1))
    seconds: float = 0.0
    answered: dict[str, int] = field(default_factory=dict)  # requests by class of status


class Sessions:
    """All sessions of a server. Methods raise Refused for what a client may not do."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.counts = limits, Counts()
        self.open: dict[str, Session] = {}
        self.waiting: list[tuple[Pool, Job, asyncio.Future[Row]]] = []
        self.wake = asyncio.Event()
        self.simulator = ThreadPoolExecutor(1, "simulator")
        self.reader = ThreadPoolExecutor(1, "scenarios")  # parsing an upload keeps no other client waiting
        room = Dims(limits.entities, limits.entities, STAGES, LAG, benign=BENIGN)
        first = scenarios.load(DEFAULT)
        sizes = {name: room._replace(restore=rules.restores(name)) for name in ("hardened", "hardened1")}
        self.pools = {
            dims: Pool(dims, limits.sessions, env.make_params(first, dims, name, "operational", "any"))
            for name, dims in sizes.items()
        }

    def compile(self) -> None:
        """All programs, of both sizes at once; nothing is served before."""
        with ThreadPoolExecutor(len(self.pools)) as each:
            list(each.map(Pool.compile, self.pools.values()))

    # --- what clients ask for -------------------------------------------------------------------------------------

    async def create(self, start: Start) -> Answer:
        """A new session, and its first answer."""
        game = await self._game(start)
        self.expire()
        if len(self.open) >= self.limits.sessions:
            raise self._full()
        pool = self.pools[game.inventory.dims]
        session = Session(secrets.token_urlsafe(16), pool, self._slot(pool), time.monotonic())
        self.open[session.id] = session
        self.counts.started += 1
        return await self._begin(session, game, start)

    async def reset(self, name: str, start: Start) -> Answer:
        """Another episode in a session."""
        session = self._session(name)
        game = await self._game(start)
        if session.closed:
            raise _unknown()
        if session.busy:
            raise _busy()
        pool = self.pools[game.inventory.dims]
        if pool is not session.pool:
            slot = self._slot(pool)
            session.pool.free.append(session.slot)
            session.pool, session.slot = pool, slot
        return await self._begin(session, game, start)

    async def step(self, name: str, act: Act) -> Answer:
        """One tick."""
        began = time.monotonic()
        session = self._session(name)
        if session.busy or session.game is None or session.answer is None:
            raise _busy()
        if session.answer.done:
            raise Refused(409, "the episode is over; reset the session to play another")
        action, refusal = chosen(act, session.game.inventory)
        row = await self._play(session, Job(session.slot, session.game.inventory, action=action))
        session.actions.append(action)
        session.answer = Answer(session=name, refusal=refusal, **row._asdict())
        took = time.monotonic() - began
        self.counts.ticks += 1
        self.counts.episodes += row.done
        self.counts.waited[sum(took > bound for bound in LATENCIES)] += 1
        self.counts.seconds += took
        return session.answer

    def state(self, name: str) -> Answer:
        """The last answer again."""
        session = self._session(name)
        if session.answer is None:
            raise _busy()
        return session.answer

    def record(self, name: str) -> dict[str, Any]:
        """The episode as `jaxsim-soc replay` plays it; only once it is over, since its seed tells what is hidden."""
        session = self._session(name)
        if session.game is None or session.answer is None or not session.answer.done:
            raise Refused(409, "the episode is not over; play it to its end first")
        game = session.game
        played = [action_text(a, game.scenario, game.inventory.dims) for a in session.actions]
        return {**game.record, "seed": session.seed, "episode": session.episode, "actions": played}

    def close(self, name: str) -> None:
        """End a session; its slot is free for another."""
        session = self._session(name)
        session.closed = True
        del self.open[name]
        if not session.busy:
            session.pool.free.append(session.slot)

    # --- how it is done -------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Close the sessions that nobody has used for too long."""
        before = time.monotonic() - self.limits.idle
        for session in [x for x in self.open.values() if x.used < before and not x.busy]:
            self.close(session.id)
            self.counts.expired += 1

    def _session(self, name: str) -> Session:
        session = self.open.get(name)
        if session is None:
            raise _unknown()
        session.used = time.monotonic()
        return session

    def _full(self) -> Refused:
        return Refused(429, f"all {self.limits.sessions} sessions are in use; close one, or try again later")

    def _slot(self, pool: Pool) -> int:
        if not pool.free:  # one of a session that was closed while it was being played
            raise self._full()
        return pool.free.pop()

    async def _game(self, start: Start) -> Game:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.reader, game_of_start, self.limits.entities, start)

    async def _begin(self, session: Session, game: Game, start: Start) -> Answer:
        seed = secrets.randbelow(MAX_SEED + 1) if start.seed is None else start.seed
        row = await self._play(session, Job(session.slot, game.inventory, game.params, seed, start.episode))
        session.game, session.seed, session.episode, session.actions = game, seed, start.episode, []
        session.answer = Answer(session=session.id, **row._asdict())
        told = {"system_prompt": prompting.system_prompt(game.inventory), "answers": prompting.schema(game.inventory)}
        return session.answer.model_copy(update=told)

    async def _play(self, session: Session, job: Job) -> Row:
        """Have a job done together with all others that wait. A session does one at a time."""
        session.busy = True
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self.waiting.append((session.pool, job, future))
        self.wake.set()
        try:
            # Who is no longer waited for is played all the same: the slot is not free before that.
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.open.pop(session.id, None)
            session.closed = True
            raise
        finally:
            if future.done():
                self._rest(session)
            else:
                future.add_done_callback(lambda _: self._rest(session))

    def _rest(self, session: Session) -> None:
        session.busy = False
        session.used = time.monotonic()
        if session.closed:
            session.pool.free.append(session.slot)

    async def run(self) -> None:
        """Serve who waits, and close who is idle, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), 1.0)
            self.wake.clear()
            self.expire()
            batch, self.waiting = self.waiting, []
            for pool in self.pools.values():
                its = [(job, future) for p, job, future in batch if p is pool]
                if not its:
                    continue
                self.counts.batches += 1
                try:
                    rows = await loop.run_in_executor(self.simulator, pool.play, [job for job, _ in its])
                    _settle([future for _, future in its], lambda f, row: f.set_result(row), rows)
                except Exception as error:  # a fault of ours: whoever waits is told, and the others go on
                    _settle([future for _, future in its], lambda f, e: f.set_exception(e), [error] * len(its))


def _settle(futures: list[asyncio.Future[Row]], how: Callable[[Any, Any], None], values: list[Any]) -> None:
    for future, value in zip(futures, values, strict=True):
        if not future.done():
            how(future, value)


def _unknown() -> Refused:
    return Refused(404, "there is no session of that id: it was closed, was idle too long, or never was; begin one")


def _busy() -> Refused:
    return Refused(409, "the session has not answered the last request yet; wait for its answer")


def game_of_start(entities: int, start: Start) -> Game:
    """What a start asks to play, of at most so many assets, and identities. Raises Refused."""
    reward = start.reward if isinstance(start.reward, str) else tuple(sorted(start.reward.items()))
    named = (start.scenario, start.generated, start.upload)
    return game(entities, *named, start.rules, reward, start.personality)


@lru_cache(128)
def game(
    entities: int,
    name: str | None,
    drawn: Generated | None,
    upload: str | None,
    rule_set: str,
    reward: Any,
    personality: str,
) -> Game:
    """What a client asks to play. Raises Refused, with the first thing that is wrong with it."""
    if sum(x is not None for x in (name, drawn, upload)) > 1:
        raise Refused(422, "scenario, generated and upload are three ways to name a scenario; give one of them")
    try:
        scenario = _scenario(entities, name, drawn, upload)
        room = Dims(entities, entities, STAGES, LAG, benign=BENIGN, restore=rules.restores(rule_set))
        check_fits(scenario, room)
        weights = reward
        if not isinstance(reward, str):
            weights = {k: math.inf if v is None else v for k, v in reward}
        params = env.make_params(scenario, room, rule_set, weights, personality)
    except scenarios.ScenarioError as error:
        first, *more = error.problems
        raise Refused(422, first + (f" (and {len(more)} more)" if more else "")) from None
    except ValueError as error:
        raise Refused(422, str(error)) from None
    named = name or (DEFAULT if upload is None and drawn is None else scenario.id)
    record = {
        "version": SIMULATOR_VERSION,
        "scenario": named,
        "rules": rule_set,
        "reward": weights,
        "personality": personality,
    }
    return Game(scenario, prompting.inventory(scenario, room), params, record)


def _scenario(entities: int, name: str | None, drawn: Generated | None, upload: str | None) -> scenarios.Scenario:
    if upload is not None:
        return scenarios.loads(upload, "upload.json" if upload.lstrip().startswith("{") else "upload.yaml")
    if drawn is not None:
        if drawn.entities > entities:
            raise Refused(422, f"generated.entities = {drawn.entities} is too many here; give at most {entities}")
        return generate(drawn.seed, drawn.entities, drawn.split)
    base, at, queue = (name or DEFAULT).partition("@")
    if base not in BUILT_IN:  # a path is none, whatever it leads to
        raise Refused(422, f"scenario {base[:60]!r} is none that is built in; give one of {', '.join(BUILT_IN)}")
    scenario = scenarios.load(base)
    return in_queue(scenario, queue) if at else scenario


def chosen(act: Act, inventory: Inventory) -> tuple[int, str | None]:
    """The action, and why words name none: then it is an invalid one, and the tick passes, as in an evaluation.

    Raises Refused for a verb and a target that are no action: whoever writes those knows the table.
    """
    if (act.text is None) == (act.action is None) or (act.text is not None and act.target is not None):
        raise Refused(422, "give either text, or action and its target")
    if act.text is not None:
        action, reason = prompting.parse(act.text, inventory)
        return action, reason or None
    action = inventory.actions.get((str(act.action), act.target), INVALID)
    if action == INVALID:
        raise Refused(
            422,
            f"action {str(act.action)[:60]!r} with target {str(act.target)[:60]!r} is none here; "
            "`answers` of the reset lists all",
        )
    return action, None

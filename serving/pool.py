"""Slots of one size, in which the episodes of many clients are played by the same compiled programs.

Who waits at the same time is served by one call. Only `play` touches the slots; it is called by one thread at a time.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import prompting
from jaxsim import lanes
from jaxsim.types import Dims, Params
from prompting import Inventory


class Job(NamedTuple):
    """What is to be done in a slot: begin an episode where there are parameters, else take an action."""

    slot: int
    inventory: Inventory
    params: Params | None = None
    seed: int = 0
    episode: int = 0
    action: int = 0


class Row(NamedTuple):
    """What came of it."""

    text: str
    observation: dict[str, Any]
    reward: float
    done: bool
    outcome: dict[str, Any] | None  # once done


class Pool:
    """`slots` places for scenarios that fit `dims`; `example` is any parameters of that size."""

    def __init__(self, dims: Dims, slots: int, example: Params) -> None:
        self.dims, self.free = dims, list(range(slots))
        self.lanes: Any
        # Written in place, and handed over whole: one scatter a leaf would take longer.
        self.params: Params = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], slots, axis=0), example)
        self.seed, self.episode = np.zeros(slots, np.uint32), np.zeros(slots, np.uint32)
        self.on_device, self.lanes = self.params, None  # until it is compiled

    def play(self, jobs: Sequence[Job]) -> list[Row]:
        """Do them all, each of a slot of its own."""
        slots = [job.slot for job in jobs]
        begins = [job for job in jobs if job.params is not None]
        reward = np.zeros(len(self.seed), np.float32)
        done = np.zeros(len(self.seed), bool)
        if begins:
            self._begin(begins)
        if len(begins) < len(jobs):
            reward, done = self._tick([job for job in jobs if job.params is None])
        obs = jax.tree.map(np.asarray, lanes.observe(self.dims, self.on_device, self.lanes.state))
        stats = lanes.outcomes(self.on_device, self.lanes) if done[slots].any() else None
        groups: dict[int, list[int]] = defaultdict(list)
        for i, job in enumerate(jobs):
            groups[id(job.inventory)].append(i)
        rows: list[Any] = [None] * len(jobs)
        for group in groups.values():
            its = jax.tree.map(lambda x, at=[slots[i] for i in group]: x[at], obs)
            texts, data = (prompting.render(its, jobs[group[0]].inventory, x) for x in ("compact", "json"))
            for i, text, fields in zip(group, texts, data, strict=True):
                over = bool(done[slots[i]])
                told = lanes.numbers(stats, slots[i]) if over and stats is not None else None
                rows[i] = Row(text, json.loads(fields), float(reward[slots[i]]), over, told)
        return rows

    def compile(self) -> None:
        """Every program; nothing is played before."""
        which = np.zeros(len(self.seed), bool)
        self.on_device = jax.tree.map(jnp.array, self.params)
        began = lanes.begin(self.dims, self.on_device, self.seed, self.episode)
        self.lanes = lanes.begin(self.dims, self.on_device, self.seed, self.episode, began, which)
        self._tick([])
        jax.block_until_ready(lanes.observe(self.dims, self.on_device, self.lanes.state))
        lanes.outcomes(self.on_device, self.lanes)

    def _begin(self, jobs: Sequence[Job]) -> None:
        which = np.zeros(len(self.seed), bool)
        for job in jobs:
            which[job.slot], self.seed[job.slot], self.episode[job.slot] = True, job.seed, job.episode
            jax.tree.map(lambda mine, new, at=job.slot: mine.__setitem__(at, new), self.params, job.params)
        self.on_device = jax.tree.map(jnp.array, self.params)
        self.lanes = lanes.begin(self.dims, self.on_device, self.seed, self.episode, self.lanes, which)

    def _tick(self, jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
        which, action = np.zeros(len(self.seed), bool), np.zeros(len(self.seed), np.int32)
        for job in jobs:
            which[job.slot], action[job.slot] = True, job.action
        self.lanes, ticked = lanes.tick(self.dims, self.on_device, self.lanes, action, which)
        return np.asarray(ticked.reward), np.asarray(ticked.done)

"""A learned blind adversary: an open-loop plan as a table of logits by tick, climbed by policy gradient.

Each step samples plans that depart from the table in a few ticks, plays them in the same episodes as the plan from
which the table began, and moves the logits along the natural gradient of the mean paired difference, which for a table
is the advantage of each action at each tick (Kakade 2001, "A natural policy gradient"). Nothing is observed, so nothing
but the simulator is needed to play: thousands of episodes a step.
"""

from collections.abc import Callable

import numpy as np

# (plans (K, T), block) -> (K, n) returns of the plans in the episodes of a block, and (n,) those of the start.
Sample = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

EDITS = 2.0  # departures from the table in a sampled plan, on average
DOUBT = 2.0  # samples with an advantage of 0 that every action at every tick begins with
FORGET = 0.98  # weight of a sample after a step
RATE = 4.0  # logits per point of advantage and step


def climb(
    sample: Sample, start: np.ndarray, acts: np.ndarray, horizon: int, steps: int, plans: int, rng: np.random.Generator
) -> np.ndarray:
    """Learn from the plan `start`, (T,): the likeliest plans of the table along the way, (about log2(steps), T) int32.

    `acts` are the actions, ascending, those of `start` among them; only the first `horizon` ticks are learned.
    """
    choice = np.searchsorted(acts, start[:horizon])
    shape = (horizon, len(acts))
    logits = np.zeros(shape)
    rare = min(0.5, EDITS / horizon)
    # Log-probabilities of the plan with few departures: the prior that the logits add to.
    base = np.full(shape, np.log(rare / max(1, len(acts) - 1)))
    base[np.arange(horizon), choice] = np.log1p(-rare)
    gain, count = np.zeros(shape), np.full(shape, DOUBT)
    found = []
    for step in range(steps):
        drawn = (base + logits)[None] + rng.gumbel(size=(plans, *shape))
        index = drawn.argmax(axis=2)
        made = np.zeros((plans, len(start)), np.int32)
        made[:, :horizon] = acts[index]
        played, reference = sample(made, step)
        advantage = (played - reference[None]).mean(axis=1)
        advantage -= np.median(advantage)
        hit = np.zeros((2, *shape))
        tick = np.broadcast_to(np.arange(horizon), index.shape)
        np.add.at(hit[0], (tick, index), advantage[:, None])
        np.add.at(hit[1], (tick, index), 1.0)
        gain, count = FORGET * gain + hit[0], FORGET * (count - DOUBT) + hit[1] + DOUBT
        logits += RATE / np.sqrt(steps) * gain / count
        if step + 1 == steps or (step + 1) & step == 0:
            plan = np.zeros(len(start), np.int32)
            plan[:horizon] = acts[(base + logits).argmax(axis=1)]
            found.append(plan)
    return np.unique(np.stack(found), axis=0) if found else start[None][:0]

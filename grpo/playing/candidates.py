"""The policies beside the model: baselines, what the audit's search finds, the learned ones."""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from grpo.playing.campaign import Campaign, tell
from grpo.playing.choices import LEARNED, MEMORYLESS, OPEN_LOOP
from grpo.reporting.measure import Told
from jaxsim import policies, recurrent, rollouts
from jaxsim.audit import checkpoint, search
from jaxsim.audit.arena import EVIDENCE, PLAN, Arena, Candidate
from jaxsim.audit.budgets import BUDGETS
from jaxsim.names import action_text
from jaxsim_soc import cli

BUDGET = "tiny"  # of the search
SHUFFLED = ("alerts", "forensics")  # what a policy that reads cannot do without
ALWAYS_THERE = ("random", "monitor")  # every other row is compared to them
READS = ("heuristic", "evidence", LEARNED, MEMORYLESS)
VIEWS = {LEARNED: recurrent.SEEING, MEMORYLESS: recurrent.MEMORYLESS}
PLAN_TICKS = 64


def candidates(args: Any, arena: Arena, advance: Callable[[str], None]) -> dict[str, Candidate]:
    """The policies of a campaign, in the order of their rows. What the search finds is kept in search.json."""
    found = {name: Candidate(name, *policies.BASELINES[name]) for name in (*ALWAYS_THERE, "heuristic")}
    kept, name = args.out / "search.json", arena.scenario.id
    if {OPEN_LOOP, "evidence"} & set(args.policies):
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        if name not in known:
            (best,) = search.search([arena], BUDGETS[BUDGET], args.seed, advance)
            plan, family = best.open_loop[0], best.evidence[0].parameters
            known[name] = {
                OPEN_LOOP: {"actions": np.trim_zeros(plan.parameters, "b").tolist()},
                "evidence": {k: np.asarray(v).item() for k, v in family._asdict().items()},
            }
            cli.write_json(kept, known)
        actions = known[name][OPEN_LOOP]["actions"] or [0]
        found[OPEN_LOOP] = Candidate(PLAN, policies.PLAN, np.asarray(actions, np.int32))
        default = policies.DEFAULT_EVIDENCE
        member = {k: np.asarray(v, np.asarray(getattr(default, k)).dtype) for k, v in known[name]["evidence"].items()}
        parameters = default._replace(**member)
        found["evidence"] = Candidate(EVIDENCE, policies.EVIDENCE, parameters)
    for which, view in VIEWS.items():
        file = checkpoint.own(args.rules, args.reward, view)
        if which in args.policies and file.is_file():
            try:
                made = checkpoint.load(file)
            except ValueError as error:
                cli.fail(f"{error}, or leave {which} out of --policies")
            found[which] = Candidate(which, recurrent.POLICIES[made.view], made.learned)
    return {k: c for k, c in found.items() if k in ALWAYS_THERE or k in args.policies}


def in_words(campaign: Campaign, candidate: Candidate) -> str:
    """What the search found."""
    kind, p = candidate.kind, candidate.parameters
    if kind == PLAN:
        each = [
            f"{action_text(int(p[t]), campaign.scenario, campaign.env.dims)} at tick {t}" for t in np.flatnonzero(p)
        ]
        return "; ".join(each) or "MONITOR"
    return ", ".join(f"{k} {v:.2g}" for k, v in p._asdict().items()) if kind == EVIDENCE else ""


def play_candidate(campaign: Campaign, name: str, candidate: Candidate, shuffle: bool) -> Told:
    """A row that needs no model."""
    one = jax.tree.map(lambda x: np.asarray(x)[None], candidate.parameters)
    if candidate.policy is policies.PLAN:  # of one length, so that all share a program
        one = np.pad(one, ((0, 0), (0, max(0, PLAN_TICKS - one.shape[1]))))
    run = partial(rollouts.rollout_many, campaign.env, campaign.params, candidate.policy, one, campaign.keys)
    began = time.perf_counter()
    stats, record = run(record=True)
    seconds = time.perf_counter() - began
    shuffled = run(shuffle=SHUFFLED)[0].episode_return[0] if shuffle and name in READS else None
    assert record is not None
    row = tell(campaign, name, jax.tree.map(lambda x: x[0], stats), np.asarray(record.action[0]).T)
    return row._replace(seconds=seconds, words=in_words(campaign, candidate), shuffled=shuffled)

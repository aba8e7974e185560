"""The scalar twin by hand: who plays which role, what is chosen among, and whole episodes."""

import random
from collections import Counter

import pytest
from twin_by_hand import CALM, NETWORK, begin, play, waiting

from jaxsim import twin, twin_reward, twin_rules, twin_state
from jaxsim.twin_policies import Policy, monitor, random_policy

# --- believable paths -------------------------------------------------------------------------------------------------


def cast(dealt: twin_rules.Dealt) -> dict[str | None, str | None]:
    """Who plays whose role."""
    listed = twin_rules.as_listed(NETWORK)
    roles, players = (
        [target for targets in (*d.stages, *d.benign) for target in targets if target] for d in (listed, dealt)
    )
    assert len(set(zip(roles, players, strict=True))) == len(set(roles))
    return dict(zip(roles, players, strict=True))


def casts(chance: float, count: int) -> list[dict[str | None, str | None]]:
    rules = twin_rules.CLASSIC._replace(unknown_path=True, believable_paths=chance)
    return [cast(twin_rules.deal(NETWORK, rules, random.Random(seed))) for seed in range(count)]


def is_believable(played_by: dict[str | None, str | None]) -> bool:
    alike = [{"door"}, {"desk", "pad"}, {"vault"}, {"ann", "cay"}, {"bob"}]
    return all(any({role, player} <= group for group in alike) for role, player in played_by.items())


def test_in_a_believable_episode_like_plays_like() -> None:
    """Hosts of the office each other, clerks each other, evenly and independently; nobody plays with the kiosk."""
    dealt = casts(1.0, 400)
    assert all(map(is_believable, dealt))
    counts = Counter((played_by["desk"], played_by["ann"]) for played_by in dealt)
    assert len(counts) == 4 and min(counts.values()) > 60


def test_the_order_of_preference_is_shuffled_in_both() -> None:
    for chance in (0.0, 1.0):
        rules = twin_rules.CLASSIC._replace(unknown_path=True, believable_paths=chance)
        orders = [twin_rules.deal(NETWORK, rules, random.Random(seed)).order for seed in range(100)]
        assert (
            {order[0] for order in orders} == {order[4] for order in orders} == set(twin_rules.as_listed(NETWORK).order)
        )


def test_so_many_episodes_are_believable() -> None:
    """Of those dealt among all, 2 of 5! casts of assets and 2 of 3! of identities are so by luck, 1 in 180."""
    for chance in (0.25, 0.5):
        dealt = casts(chance, 1000)
        share = sum(map(is_believable, dealt)) / len(dealt)
        assert share == pytest.approx(chance + (1 - chance) / 180, abs=0.05)
        assert {played_by["vault"] for played_by in dealt} == {"door", "desk", "pad", "vault", "kiosk"}


@pytest.mark.parametrize("seed", range(5))
def test_without_it_the_luck_is_what_it_was(seed: int) -> None:
    for rules in (twin_rules.HARDENED, twin_rules.HARDENED._replace(unknown_path=False, believable_paths=1.0)):
        ours, rng = random.Random(seed), random.Random(seed)
        dealt = twin_rules.deal(NETWORK, rules, ours)
        assert dealt.attack == (rng.random() < 0.6) and dealt.first_start == 1 + rng.randint(0, 20)
        if rules.unknown_path:
            rng.sample(NETWORK.assets, 5)
            rng.sample(NETWORK.identities, 3)
            assert dealt.order == tuple(rng.sample(twin_rules.as_listed(NETWORK).order, 5))
        assert ours.getstate() == rng.getstate()


# --- investigations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "investigations", "confirmed"),
    [
        ("INVESTIGATE door", 1, 1),
        ("INVESTIGATE bob", 1, 0),
        ("INVESTIGATE nobody", 0, 0),
        ("ISOLATE_ASSET door", 0, 0),
        ("MONITOR", 0, 0),
    ],
)
def test_investigations_are_counted_and_paid_for(action: str, investigations: int, confirmed: int) -> None:
    tick = play(waiting(2), action)
    assert (tick.investigations, tick.newly_confirmed) == (investigations, confirmed)
    weights = {**twin_reward.LINEAR, "investigation": -0.25}
    assert twin_reward.channels(tick, weights)["detection"] == 1.5 * confirmed - 0.25 * investigations
    for preset in twin_reward.REWARDS.values():
        assert twin_reward.channels(tick, preset)["detection"] == 1.5 * confirmed


def test_nothing_is_investigated_after_the_end() -> None:
    state = waiting(40)
    assert state.done and play(state, "INVESTIGATE door").investigations == 0


# --- whole episodes ---------------------------------------------------------------------------------------------------


def test_the_random_policy_restores_where_that_is_an_action() -> None:
    def chosen(state: twin_state.State, verb: float, target: float) -> twin_state.Action:
        return random_policy(state, set(), CALM._replace(policy_verb=verb, policy_target=target))

    assert chosen(begin(), 0.999, 0.0) == (twin_rules.REVOKE, "ann")
    liftable = begin(liftable=True)
    assert chosen(liftable, 6.01 / 7, 0.0) == (twin_rules.RESTORE, "door")
    assert chosen(liftable, 5.99 / 7, 0.0) == (twin_rules.REVOKE, "ann")
    everyone = [*liftable.criticality, *liftable.privilege]
    assert [chosen(liftable, 0.999, (i + 0.5) / 8) for i in range(8)] == [
        (twin_rules.RESTORE, name) for name in everyone
    ]


def test_presets_have_the_new_rules_off() -> None:
    new = ("foothold", "liftable", "eradication", "believable_paths", "resumption")
    assert twin_rules.Rules._fields[-7:] == (*new, "background_severity", "background_paired")
    quiet = ((0.10, 0.45), 0.0)
    assert twin_rules.CLASSIC[-7:] == twin_rules.HARDENED1[-7:] == (False, False, False, 0.0, False, *quiet)
    assert twin_rules.HARDENED2[-7:] == (True, True, True, 0.0, True, *quiet)
    assert all(weights["investigation"] == 0.0 for weights in twin_reward.REWARDS.values())


@pytest.mark.parametrize("policy", [monitor, random_policy])
def test_in_any_episode_a_stage_pays_once_and_load_is_what_is_in_force(policy: Policy) -> None:
    rules = twin_rules.HARDENED1._replace(foothold=True, liftable=True, eradication=True, believable_paths=0.5)
    lifted = 0
    for seed in range(30):
        rng = random.Random(seed)
        state = twin_state.reset(NETWORK, "opportunistic", rules, twin_rules.deal(NETWORK, rules, rng))
        active = preemptive = 0
        while not state.done:
            u, before = twin_rules.draw(rng), len(state.isolated | state.egress_blocked | state.revoked)
            tick = twin.step(state, policy(state, set(), u), u)
            active, preemptive = active + tick.active_blocks, preemptive + tick.preemptive_blocks
            lifted += len(state.isolated | state.egress_blocked | state.revoked) < before
            assert tick.load == twin.load(state) and not tick.invalid
            # A blocked stage is contained, whatever was restored.
            blocked = [name for name, status in state.status.items() if status == "blocked"]
            assert all(twin.is_contained(state, state.stages[name]) for name in blocked)
        assert state.tick == 40 and max(active, preemptive) <= 5
    assert (lifted > 0) == (policy is random_policy)

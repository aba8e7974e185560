"""The newer rules in the scalar twin, by hand: RESTORE, foothold, eradication and what pays once."""

import copy

import pytest
from twin_by_hand import CALM, LASTING, NETWORK, begin, play, waiting

from jaxsim import twin, twin_rules


def test_the_attack_left_alone_runs_as_said_above() -> None:
    state = begin(foothold=True, liftable=True, eradication=True)
    seen = [(state.tick, play(state, "MONITOR") and state.current and state.current.id) for _ in range(11)]
    expected = ["enter", *["login"] * 3, *["gather"] * 3, *["send"] * 3, None]
    assert seen == list(enumerate(expected))
    assert state.out and state.compromised == {"door", "desk", "ann"}


# --- RESTORE ----------------------------------------------------------------------------------------------------------


def test_restore_is_the_last_verb_and_invalid_without_its_switch() -> None:
    assert twin_rules.VERBS[-1] == twin_rules.RESTORE == "RESTORE" and len(twin_rules.VERBS) == 7
    for rules in (twin_rules.CLASSIC, twin_rules.HARDENED1):
        state = begin(rules)
        state.isolated.add("door")
        assert play(state, "RESTORE door").invalid
        assert state.isolated == {"door"} and not state.acted


@pytest.mark.parametrize(("target", "valid"), [("door", True), ("ann", True), ("enter", False), (None, False)])
def test_restore_is_of_an_asset_or_an_identity(target: str | None, valid: bool) -> None:
    assert twin.is_valid(begin(liftable=True), (twin_rules.RESTORE, target)) == valid


def test_restore_lifts_all_that_is_in_force_but_a_patch() -> None:
    state = begin(liftable=True)
    before = play(state, "ISOLATE_ASSET door", "BLOCK_EGRESS door", "PATCH_ASSET door", "REVOKE_IDENTITY ann")
    assert before.load == pytest.approx(0.4 + 0.4 * 0.4 + 0.3 * 0.6)
    after = play(state, "RESTORE door")
    assert after.load == pytest.approx(0.3 * 0.6)  # on the same tick
    assert (state.isolated, state.egress_blocked, state.patched) == (set(), set(), {"door"})
    assert play(state, "RESTORE ann").load == 0 and state.revoked == set()
    assert (after.containments, after.investigations, after.false_positives, after.invalid) == (0, 0, 0, False)


def test_a_restore_of_nothing_is_monitor() -> None:
    for target in ("door", "ann"):
        restored, monitored = (begin(liftable=True) for _ in range(2))
        for state in (restored, monitored):
            state.patched.add("door")  # a patch is nothing to lift
        assert play(restored, f"RESTORE {target}") == play(monitored, "MONITOR")
        assert restored == monitored and not restored.acted


def test_a_restore_that_lifts_something_is_an_act() -> None:
    state = begin(liftable=True)
    state.isolated.add("kiosk")
    assert play(state, "RESTORE kiosk").acted and state.acted


@pytest.mark.parametrize(
    ("action", "starts"),
    [("RESTORE kiosk", True), ("RESTORE pad", True), ("INVESTIGATE pad", False), ("PATCH_ASSET kiosk", False)],
)
def test_the_attacker_does_not_pause_over_a_restore(action: str, starts: bool) -> None:
    state = begin(liftable=True)
    state.isolated.add("kiosk")
    play(state, action, u=CALM._replace(pause=0.0))  # an opportunist pauses below 0.15
    assert (state.status["enter"] == "in_progress") == starts


def test_what_a_restore_frees_may_start_on_that_tick() -> None:
    state = begin(liftable=True)
    play(state, "ISOLATE_ASSET door")
    assert state.status["enter"] == "blocked"
    play(state, "RESTORE door")
    assert state.status["enter"] == "in_progress" and state.stage_end == 3


def test_what_another_control_holds_stays_blocked() -> None:
    state = begin(liftable=True)
    play(state, "ISOLATE_ASSET vault", "REVOKE_IDENTITY bob", "BLOCK_EGRESS vault")
    held = {"gather", "send"}
    assert {name for name, status in state.status.items() if status == "blocked"} == held
    at_once = copy.deepcopy(state)
    twin.restore(at_once, "vault")
    assert at_once.status["gather"] == "blocked"  # without being idle for a moment
    play(state, "RESTORE vault")  # lifts both; bob still holds gather
    assert (state.status["gather"], state.status["send"]) == ("blocked", "idle")
    play(state, "RESTORE bob")  # tick 5, on which login succeeds
    assert state.current.id == "gather"


# --- blocks pay once --------------------------------------------------------------------------------------------------


def test_a_stage_is_a_preemptive_block_once() -> None:
    state = begin(liftable=True)
    assert play(state, "ISOLATE_ASSET vault").preemptive_blocks == 2  # gather and send
    assert play(state, "RESTORE vault", "ISOLATE_ASSET vault").preemptive_blocks == 0
    assert (state.status["gather"], state.status["send"]) == ("blocked", "blocked")


def test_a_stage_is_an_active_block_once_and_then_no_preemptive_one() -> None:
    state = waiting(1, liftable=True)
    assert play(state, "ISOLATE_ASSET door").active_blocks == 1
    play(state, "RESTORE door")
    state.earned = False
    assert play(state, "ISOLATE_ASSET door").active_blocks == 0
    assert state.status["enter"] == "blocked"
    assert state.earned  # by a block that was not counted
    state.next_start = 99
    assert play(state, "RESTORE door", "ISOLATE_ASSET door").preemptive_blocks == 0
    assert state.status["enter"] == "blocked"


def test_a_preemptive_block_may_become_an_active_one() -> None:
    state = begin(liftable=True)
    assert play(state, "ISOLATE_ASSET door").preemptive_blocks == 1
    tick = play(state, "RESTORE door", "ISOLATE_ASSET door")
    assert (tick.active_blocks, tick.preemptive_blocks) == (1, 0)


# --- evidence counts once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [True, False])
def test_a_restore_does_not_renew_evidence(once: bool) -> None:
    state = begin(liftable=True, evidence_once=once)
    state.confirmed.add("door")
    first, again = play(state, "ISOLATE_ASSET door"), play(state, "RESTORE door", "ISOLATE_ASSET door")
    assert (first.evidence_paid, again.evidence_paid) == (1, not once)
    assert first.evidence_backed == again.evidence_backed == 1


@pytest.mark.parametrize("once", [True, False])
def test_a_first_containment_without_evidence_is_the_only_first(once: bool) -> None:
    state = begin(liftable=True, evidence_once=once)
    tick = play(state, "REVOKE_IDENTITY ann")
    assert tick.evidence_paid == tick.evidence_backed == 0
    play(state, "RESTORE ann")
    state.confirmed.add("ann")
    tick = play(state, "REVOKE_IDENTITY ann")
    assert (tick.evidence_paid, tick.evidence_backed) == (not once, 1)


def test_what_was_lifted_and_is_contained_again_is_told_apart() -> None:
    state = begin(liftable=True, eradication=True)
    for verb in ("ISOLATE_ASSET", "BLOCK_EGRESS", "PATCH_ASSET"):
        assert play(state, f"{verb} door").recontained == 0
    assert play(state, "RESTORE door", "ISOLATE_ASSET door").recontained == 1
    assert play(state, "PATCH_ASSET door").recontained == 0  # rebuilt
    assert play(state, "REVOKE_IDENTITY ann").recontained == 0
    assert [play(state, "RESTORE ann", "REVOKE_IDENTITY ann").recontained for _ in range(3)] == [1] * 3


# --- foothold ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compromised", "cut_off", "gives"),
    [
        ("enter", "door", "", True),
        ("enter", "door", "door", False),
        ("enter", "", "", False),  # rebuilt
        ("enter", "desk", "", False),  # another's
        ("login", "desk ann", "", True),
        ("login", "desk ann", "desk", True),
        ("login", "desk ann", "ann", True),
        ("login", "desk ann", "desk ann", False),
        ("login", "ann", "", True),
        ("login", "ann", "ann", False),
        ("login", "desk", "ann", True),
        ("gather", "", "vault bob", True),  # takes nothing
    ],
)
def test_a_stage_gives_a_foothold_while_it_holds_one_of_its_targets(
    name: str, compromised: str, cut_off: str, gives: bool
) -> None:
    state = begin(foothold=True)
    state.compromised = set(compromised.split())
    state.isolated = state.criticality.keys() & cut_off.split()
    state.revoked = state.privilege.keys() & cut_off.split()
    state.egress_blocked = set(state.criticality)  # cuts nothing off
    assert not twin.gives_foothold(state, name)  # it has not succeeded
    state.status[name] = "succeeded"
    assert twin.gives_foothold(state, name) == gives


@pytest.mark.parametrize(
    ("name", "succeeded", "compromised", "supported", "without_foothold"),
    [
        ("enter", "", "", True, True),
        ("send", "enter", "door", False, False),
        ("send", "gather", "door", False, False),
        ("send", "enter gather", "", False, True),
        ("send", "enter gather", "door", True, True),
        ("gather", "enter", "door ann", False, False),
        ("gather", "enter login", "door", False, True),
        ("gather", "enter login", "door ann", True, True),
        ("gather", "enter probe", "door", True, True),
        ("gather", "enter login probe", "ann", False, True),
        ("gather", "login probe", "door ann", False, False),
    ],
)
def test_a_stage_needs_footholds_of_all_and_of_one_of_its_choice(
    name: str, succeeded: str, compromised: str, supported: bool, without_foothold: bool
) -> None:
    """`gather` and `probe` take nothing and give a foothold by success alone, `enter` and `login` by what is held."""
    state = begin(foothold=True)
    state.status.update(dict.fromkeys(succeeded.split(), "succeeded"))
    state.compromised = set(compromised.split())
    assert twin.is_ready(state, state.stages[name]) == supported
    state.rules = LASTING
    assert twin.is_ready(state, state.stages[name]) == without_foothold


@pytest.mark.parametrize("foothold", [True, False])
def test_a_stage_in_progress_that_loses_its_foothold_is_blocked(foothold: bool) -> None:
    state = waiting(4, foothold=foothold)
    tick = play(state, "ISOLATE_ASSET door")  # tick 5, on which login would succeed
    assert (tick.active_blocks, tick.preemptive_blocks, state.earned) == (foothold, 0, foothold)
    assert state.status["login"] == ("idle" if foothold else "succeeded")
    assert (state.current is None) == foothold


def test_one_that_is_contained_as_well_is_blocked_for_good() -> None:
    state = waiting(2, foothold=True)
    state.revoked.add("ann")
    assert play(state, "ISOLATE_ASSET door").active_blocks == 1
    assert state.status["login"] == "blocked"


def test_a_stage_without_foothold_neither_starts_nor_counts_as_something_to_do() -> None:
    lasting, classic = waiting(2, foothold=True), waiting(2, twin_rules.CLASSIC, foothold=True)
    for state in (lasting, classic):
        play(state, "ISOLATE_ASSET door")
    assert classic.end == "attacker_done"  # though four stages are idle
    play(lasting, *["MONITOR"] * 5)
    assert lasting.current is None and list(lasting.status.values()) == ["succeeded", *["idle"] * 4]


def test_a_foothold_given_back_lets_the_attacker_go_on() -> None:
    state = waiting(2, foothold=True, liftable=True)
    play(state, "ISOLATE_ASSET door", "RESTORE door")  # ticks 3 and 4
    assert state.current.id == "login" and state.stage_end == 7


def test_another_way_serves_as_well() -> None:
    state = waiting(5, foothold=True)  # gather runs on what login took
    play(state, "ISOLATE_ASSET desk")  # it still holds ann
    assert state.current.id == "gather"
    assert play(state, "REVOKE_IDENTITY ann").active_blocks == 1  # tick 7
    assert state.current.id == "probe" and state.status["gather"] == "idle"
    play(state, *["MONITOR"] * 3)
    assert state.current.id == "gather" and state.stage_end == 13
    play(state, *["MONITOR"] * 3)
    assert state.status["gather"] == "succeeded"


@pytest.mark.parametrize(("action", "status"), [("ISOLATE_ASSET door", "idle"), ("REVOKE_IDENTITY ann", "blocked")])
@pytest.mark.parametrize(("u", "next_start"), [(0.0, 6), (0.99, 11)])  # 3 to 8 ticks after tick 3
def test_the_time_lost_is_the_same_for_both(action: str, status: str, u: float, next_start: int) -> None:
    state = waiting(2, foothold=True, persistence=True, retry_delay=(3, 8))
    play(state, action, u=CALM._replace(dwell=u))
    assert (state.status["login"], state.next_start) == (status, next_start)
    assert state.order == list(state.dealt.order)


GOES_ON = {"foothold": True, "liftable": True, "resumption": True, "persistence": True, "retry_delay": (3, 8)}


def test_what_lost_its_foothold_goes_on_where_it_was() -> None:
    """`login`, of ticks 2 to 5, stops on tick 4 with one tick to go, and nobody rests over it."""
    state = waiting(3, **GOES_ON)
    play(state, "ISOLATE_ASSET door")
    assert (state.current, state.left, state.next_start) == (None, {"login": 1}, 1)
    play(state, "MONITOR", "MONITOR", "RESTORE door")
    assert (state.current.id, state.stage_end, state.left) == ("login", 8, {})
    play(state, "MONITOR")
    assert state.status["login"] == "succeeded"


def test_what_was_contained_goes_on_when_the_attacker_has_time() -> None:
    state = waiting(3, **GOES_ON)
    play(state, "REVOKE_IDENTITY ann")
    assert (state.current.id, state.left) == ("probe", {"login": 1})
    play(state, "RESTORE ann", "MONITOR", "MONITOR")  # ticks 5 to 7, on which `probe` succeeds
    assert (state.current.id, state.stage_end) == ("login", 8)


def test_going_on_is_no_event() -> None:
    state, seen = begin(liftable=True, resumption=True), CALM._replace(alert_1=-1.0)
    play(state, "MONITOR", "ISOLATE_ASSET door", u=seen)
    assert len(state.alerts) == 1 and state.left == {"enter": 1}
    play(state, "RESTORE door", u=seen)
    assert state.current.id == "enter" and state.stage_end == 4 and not state.pending
    assert len(state.alerts) == 1


def test_without_restore_what_was_stopped_begins_anew() -> None:
    state = waiting(3, foothold=True, resumption=True)
    play(state, "ISOLATE_ASSET door")
    assert state.left == {} and state.status["login"] == "idle"


@pytest.mark.parametrize(("range_", "severity"), [((0.10, 0.45), 0.275), ((0.10, 0.90), 0.5)])
def test_background_severity_is_drawn_from_its_range(range_: tuple[float, float], severity: float) -> None:
    state = begin(background_severity=range_)
    state.scenario = state.scenario.model_copy(update={"noise_rate": 1.0})
    play(state, "MONITOR", u=CALM._replace(background=0.5, background_severity=0.5))
    assert state.alerts[-1].severity == pytest.approx(severity)


ASSETS, IDENTITIES = [a.id for a in NETWORK.assets], [i.id for i in NETWORK.identities]


@pytest.mark.parametrize(
    ("u", "paired", "named"),
    [
        (0.0, 0.0, ("door", None)),
        (0.34, 0.0, (ASSETS[-1], None)),
        (0.36, 0.0, (None, "ann")),
        (0.0, 0.5, ("door", "ann")),
        (0.34, 0.5, (ASSETS[-1], IDENTITIES[-1])),
        (0.36, 0.5, ("door", None)),
        (0.52, 0.5, (ASSETS[-1], None)),
        (0.53, 0.5, (None, "ann")),
        (0.69, 0.5, (None, IDENTITIES[-1])),
        (0.71, 0.5, (None, None)),
        (0.69, 1.0, (ASSETS[-1], IDENTITIES[-1])),
    ],
)
def test_a_background_alert_names_two_one_or_none(
    u: float, paired: float, named: tuple[str | None, str | None]
) -> None:
    state = begin(background_paired=paired)
    assert twin.background_entity(state, u) == named


@pytest.mark.parametrize("kind", ["assets", "identities"])
def test_no_background_alert_names_two_where_there_is_one_kind(kind: str) -> None:
    state = begin(background_paired=0.5)
    state.scenario = state.scenario.model_copy(update={kind: ()})
    named = [twin.background_entity(state, u / 100) for u in range(70)]
    assert {bool(asset) for asset, _ in named} == {kind != "assets"}
    assert {bool(identity) for _, identity in named} == {kind != "identities"}


def test_only_containment_is_a_preemptive_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle stage is no preemptive block for want of a foothold; whether it can be one without is a reading."""
    state = waiting(2, foothold=True)
    assert play(state, "ISOLATE_ASSET door").preemptive_blocks == 0
    assert (state.status["probe"], state.status["gather"]) == ("idle", "idle")
    other = copy.deepcopy(state)
    assert play(state, "ISOLATE_ASSET pad").preemptive_blocks == 1
    monkeypatch.setattr(twin, "COUNT_UNSUPPORTED", False)
    assert play(other, "ISOLATE_ASSET pad").preemptive_blocks == 0
    assert state.status["probe"] == other.status["probe"] == "blocked"


# --- eradication ------------------------------------------------------------------------------------------------------


def test_a_patch_of_an_isolated_asset_rebuilds_it() -> None:
    state = waiting(2, eradication=True)
    assert play(state, "INVESTIGATE door").newly_confirmed == 1
    play(state, "ISOLATE_ASSET door")
    assert (state.compromised, state.confirmed) == ({"door"}, {"door"})
    tick = play(state, "PATCH_ASSET door")  # judged on what held before
    assert (tick.containments, tick.evidence_paid, tick.evidence_backed, tick.false_positives) == (1, 1, 1, 0)
    assert not {"door"} & (state.compromised | state.confirmed)
    assert state.patched == state.isolated == {"door"} and tick.load == pytest.approx(0.4)
    assert state.status["enter"] == "succeeded"
    tick = play(state, "PATCH_ASSET door")  # confirmed no longer
    assert tick.containments == 1 and tick.evidence_paid == tick.evidence_backed == 0
    assert play(state, "INVESTIGATE door").newly_confirmed == 0
    assert state.forensics[-1].verdict == "clean"


@pytest.mark.parametrize(
    ("actions", "eradication"),
    [
        (["ISOLATE_ASSET door", "PATCH_ASSET door"], False),
        (["PATCH_ASSET door", "ISOLATE_ASSET door"], True),
        (["BLOCK_EGRESS door", "PATCH_ASSET door"], True),
        (["ISOLATE_ASSET kiosk", "PATCH_ASSET door"], True),
        (["ISOLATE_ASSET door", "RESTORE door", "PATCH_ASSET door"], True),
        (["ISOLATE_ASSET door", "PATCH_ASSET kiosk"], True),
    ],
)
def test_nothing_else_rebuilds_an_asset(actions: list[str], eradication: bool) -> None:
    state = waiting(2, eradication=eradication, liftable=True)
    play(state, "INVESTIGATE door", *actions)
    assert "door" in state.compromised and state.confirmed == {"door"}


def test_a_rebuilt_asset_is_no_foothold_until_it_is_taken_again() -> None:
    state = waiting(2, eradication=True, foothold=True, liftable=True)
    play(state, "ISOLATE_ASSET door", "PATCH_ASSET door", "RESTORE door", "MONITOR")
    assert state.current is None and state.status["enter"] == "succeeded"
    state.compromised.add("door")  # by whichever stage
    play(state, "MONITOR")
    assert state.status["login"] == "in_progress"

"""The campaigns and their hardened variants: what each holds, and that ATT&CK knows its stages."""

import itertools
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest
import yaml

import scenarios
from scenarios import attack

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGNS = ROOT / "scenarios" / "campaigns"
NAMES = scenarios.names()
HARDENED = scenarios.names("hardened")
FILES = {name: CAMPAIGNS / f"{name}.yaml" for name in NAMES} | {
    name: CAMPAIGNS / "hardened" / f"{name}.yaml" for name in HARDENED
}

# --- the four campaigns -------------------------------------------------------------------------------------


def test_names_are_in_their_listed_order() -> None:
    assert NAMES == (
        "supply_chain_token_drift",
        "federated_identity_takeover",
        "insider_repo_pivot",
        "cloud_metadata_ssrf",
    )
    assert scenarios.names("published") == NAMES
    assert scenarios.names("hardened") == tuple(f"{name}_hardened" for name in NAMES)
    assert {name for group in scenarios.GROUPS for name in scenarios.names(group)} == set(FILES)
    assert set(CAMPAIGNS.rglob("*.yaml")) == set(FILES.values())


@pytest.mark.parametrize(("group", "meant"), [("hardend", "; did you mean 'hardened'?"), ("", ""), ("all", "")])
def test_unknown_groups_list_the_known_ones(group: str, meant: str) -> None:
    with pytest.raises(ValueError) as caught:
        scenarios.names(group)
    expected = f"{group!r} is not a group of built-in scenarios{meant}; the groups are published, hardened"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "horizon", "noise", "counts", "dwell_sum", "success_product", "criticality"),
    [
        ("supply_chain_token_drift", 70, 0.18, (6, 4, 5), (19, 41), 0.436050, 4.65),
        ("federated_identity_takeover", 70, 0.22, (6, 5, 5), (20, 43), 0.317520, 4.55),
        ("insider_repo_pivot", 80, 0.20, (6, 4, 6), (24, 53), 0.301147, 4.85),
        ("cloud_metadata_ssrf", 70, 0.15, (6, 4, 5), (18, 39), 0.330671, 4.15),
    ],
)
def test_figures(
    name: str,
    horizon: int,
    noise: float,
    counts: tuple[int, int, int],
    dwell_sum: tuple[int, int],
    success_product: float,
    criticality: float,
) -> None:
    s = scenarios.load(name)
    assert (s.id, s.horizon, s.noise_rate) == (name, horizon, noise)
    assert (len(s.assets), len(s.identities), len(s.stages)) == counts
    assert tuple(sum(stage.dwell[i] for stage in s.stages) for i in (0, 1)) == dwell_sum
    product = 1.0
    for stage in s.stages:
        product *= stage.success
    assert product == pytest.approx(success_product, abs=1e-6)
    assert sum(asset.criticality for asset in s.assets) == pytest.approx(criticality)


@pytest.mark.parametrize("name", NAMES)
def test_campaigns_are_chains_that_end_in_exfil(name: str) -> None:
    s = scenarios.load(name)
    assert s.stages[0].prerequisites == ()
    for before, stage in itertools.pairwise(s.stages):
        assert stage.prerequisites == (before.id,)
    assert [stage.exfil for stage in s.stages] == [False] * (len(s.stages) - 1) + [True]
    assert s.held_out == (name == "cloud_metadata_ssrf")
    assert s.description and s.title


def test_a_stage_of_each_campaign() -> None:
    supply, federated, insider, cloud = (scenarios.load(name) for name in NAMES)
    pivot = supply.stages[2]
    assert (pivot.asset, pivot.identity) == ("payments-svc", "svc-payments")
    assert (pivot.dwell, pivot.lag, pivot.success, pivot.detection) == ((6, 12), (1, 4), 0.75, 0.55)
    assert pivot.compromises_asset and pivot.compromises_identity
    assert pivot.signal == "lateral_movement"
    fatigue = federated.stages[1]
    assert (fatigue.asset, fatigue.identity, fatigue.technique) == ("idp-okta", "u-vp-sales", "T1621")
    assert not fatigue.compromises_asset and not fatigue.compromises_identity
    recon = insider.stages[0]
    assert (recon.tactic, recon.technique, recon.signal) == ("TA0009", "T1213.003", "data_staging")
    keys = cloud.stages[3]
    assert (keys.tactic, keys.technique, keys.signal) == ("TA0006", "T1555.006", "data_staging")
    assert keys.compromises_asset and not keys.compromises_identity


@pytest.mark.parametrize("name", FILES)
def test_every_signal_is_written_out(name: str) -> None:
    data = yaml.safe_load(FILES[name].read_text(encoding="utf-8"))
    assert all("signal" in stage for stage in data["stages"])


@pytest.mark.parametrize("name", FILES)
def test_comments_give_the_attack_names(name: str) -> None:
    for row in FILES[name].read_text(encoding="utf-8").splitlines():
        field, _, rest = row.strip().partition(": ")
        if field in ("tactic", "technique"):
            id_, _, comment = rest.partition(" # ")
            assert comment == (attack.tactics()[id_] if field == "tactic" else attack.techniques()[id_][0])


# --- their hardened variants --------------------------------------------------------------------------------


def targets(entry: scenarios.Stage | scenarios.Benign) -> set[str]:
    """The ids of the entities it names."""
    return {target for target in (entry.asset, entry.identity) if target}


def reachable(s: scenarios.Scenario, without: Collection[str] = (), contained: Collection[str] = ()) -> set[str]:
    """The ids of the stages that can still succeed without some stages, and with some entities contained."""
    left = [stage for stage in s.stages if stage.id not in without and targets(stage).isdisjoint(contained)]
    done: set[str] = set()
    for _ in s.stages:  # each round adds the stages one step further on
        done |= {
            stage.id
            for stage in left
            if done.issuperset(stage.prerequisites)
            and (not stage.any_prerequisites or not done.isdisjoint(stage.any_prerequisites))
        }
    return done


def exfil(s: scenarios.Scenario) -> set[str]:
    """The ids of the exfil stages."""
    return {stage.id for stage in s.stages if stage.exfil}


def entries(s: scenarios.Scenario) -> list[scenarios.Stage]:
    """The stages that need no other."""
    return [stage for stage in s.stages if not stage.prerequisites and not stage.any_prerequisites]


@pytest.mark.parametrize("name", HARDENED)
def test_hardened_variants_are_larger_enterprises(name: str) -> None:
    s = scenarios.load(name)
    campaign = scenarios.load(name.removesuffix("_hardened"))
    assert (s.id, s.horizon, s.held_out) == (name, campaign.horizon, campaign.held_out)
    assert (len(s.assets), len(s.identities)) == (12, 8)
    assert s.title.startswith(campaign.title) and s.description

    named = Counter(target for stage in s.stages for target in targets(stage))
    assert max(named.values()) <= 2
    assert 4 <= sum(asset.id not in named for asset in s.assets) <= 5
    assert sum(identity.id not in named for identity in s.identities) == 3

    assert 8 <= len(s.stages) <= 10
    assert 2 <= len(entries(s)) <= 3
    assert 1 <= len(exfil(s)) <= 2
    assert len({len(targets(stage)) for stage in s.stages}) == 2  # some name one entity, some two
    for stage in s.stages:
        assert 0.2 <= stage.detection <= 0.7 and stage.lag[1] <= 7
        assert stage.exfil != (stage.compromises_asset or stage.compromises_identity)
    assert all(stage.dwell[0] >= 3 and stage.dwell[1] <= 7 for stage in entries(s))


@pytest.mark.parametrize("name", HARDENED)
def test_hardened_variants_have_look_alikes(name: str) -> None:
    s = scenarios.load(name)
    assert 3 <= len(s.benign) <= 4
    assert 0.12 <= s.noise_rate <= 0.16
    assert 0.10 <= sum(benign.rate for benign in s.benign) <= 0.14 + 1e-9
    assert all(0.3 <= benign.strength <= 0.6 for benign in s.benign)
    assert {benign.signal for benign in s.benign} <= {stage.signal for stage in s.stages}
    # Their targets are no tell: some are part of the attack, some are not.
    attacked = {target for stage in s.stages for target in targets(stage)}
    assert {target in attacked for benign in s.benign for target in targets(benign)} == {True, False}


@pytest.mark.parametrize("name", HARDENED)
def test_the_hardened_attack_has_a_way_round_each_stage(name: str) -> None:
    s = scenarios.load(name)
    assert reachable(s) == {stage.id for stage in s.stages}
    for stage in s.stages:
        if not stage.exfil:
            assert reachable(s, without=[stage.id]) & exfil(s), f"without {stage.id}"


@pytest.mark.parametrize("name", HARDENED)
def test_the_hardened_attack_has_a_way_round_each_entity_but_a_single_way_out(name: str) -> None:
    s = scenarios.load(name)
    ways_out = {stage.asset for stage in s.stages if stage.exfil}
    for entity in [asset.id for asset in s.assets] + [identity.id for identity in s.identities]:
        stopped = not reachable(s, contained=[entity]) & exfil(s)
        assert stopped == (ways_out == {entity}), entity


@pytest.mark.parametrize("name", HARDENED)
def test_the_hardened_attack_can_be_beaten_at_its_entries(name: str) -> None:
    s = scenarios.load(name)
    # One entity of each entry stage is enough, whichever it is.
    for chosen in itertools.product(*(sorted(targets(stage)) for stage in entries(s))):
        assert reachable(s, contained=chosen) == set()
        for i in range(len(chosen)):  # and all of them are needed
            assert reachable(s, contained=chosen[:i] + chosen[i + 1 :]) & exfil(s)


# --- ATT&CK -------------------------------------------------------------------------------------------------


def test_the_attack_table() -> None:
    assert (len(attack.tactics()), len(attack.techniques())) == (15, 697)
    assert attack.techniques()["T1072"] == ("Software Deployment Tools", ("TA0002", "TA0008"))
    used = {tactic for _, tactics in attack.techniques().values() for tactic in tactics}
    assert used == set(attack.tactics())
    assert (ROOT / "scenarios" / "attack.json").stat().st_size < 150_000
    table = json.loads((ROOT / "scenarios" / "attack.json").read_text(encoding="utf-8"))
    assert "The MITRE Corporation. This work is reproduced and distributed" in table["copyright"]


def test_all_pairs_are_in_attack() -> None:
    assert sum(len(scenarios.load(name).stages) for name in NAMES) == 21
    stages = [stage for name in FILES for stage in scenarios.load(name).stages]
    assert all(attack.pair_problem(stage.tactic, stage.technique) is None for stage in stages)

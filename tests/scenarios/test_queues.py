"""Queues of alerts: the same network before triage, by a name behind its own, in every tool.

python tests/scenarios/test_queues.py          the share of alerts outside any attack, in every campaign
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim
import scenarios
from jaxsim import env, options
from jaxsim.one_episode import episode_keys, start, tick_noise
from jaxsim.types import State

NAMES = [name for group in scenarios.GROUPS for name in scenarios.names(group)]
EPISODES = 256


def alerts(scenario: scenarios.Scenario) -> float:
    """Mean alerts of an episode under hardened rules with which nobody does anything about it."""
    game, params = jaxsim.make(scenario, rules="hardened")

    def episode(key: jax.Array) -> jax.Array:
        def tick(state: State, _: None) -> tuple[State, None]:
            return env.transition(game.dims, state, jnp.int32(0), tick_noise(key, state.tick + 1), params)[0], None

        return jax.lax.scan(tick, start(game.dims, key, params), None, scenario.horizon)[0].alerts.count

    return float(np.mean(jax.jit(jax.vmap(episode))(episode_keys(jax.random.key(3), EPISODES))))


def outside(name: str) -> tuple[float, float]:
    """Shares of alerts that are not of an attack, in the triaged and in the raw queue."""
    triaged = scenarios.load(name)
    quiet = scenarios.Scenario.model_validate({**triaged.model_dump(), "noise_rate": 0.0, "benign": (), "queues": ()})
    attack = alerts(quiet)
    return 1.0 - attack / alerts(triaged), 1.0 - attack / alerts(scenarios.load(f"{name}@raw"))


@pytest.mark.parametrize("name", ["supply_chain_token_drift", "cloud_metadata_ssrf_hardened"])
def test_a_raw_queue_is_as_noisy_as_its_source_says(name: str) -> None:
    triaged, raw = outside(name)
    assert 0.7 < triaged < 0.86 and 0.93 <= raw <= 0.98


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_scaled_and_nothing_else_changes(name: str) -> None:
    own, raw = scenarios.load(name), scenarios.load(f"{name}@raw")
    [queue] = own.queues
    rates = [[s.noise_rate, *(b.rate for b in s.benign)] for s in (own, raw)]
    assert sum(rates[1]) == pytest.approx(queue.rate, abs=1e-6) and sum(rates[1]) <= queue.rate
    np.testing.assert_allclose(np.divide(*rates), rates[0][0] / rates[1][0], rtol=1e-6)
    back = raw.model_copy(update={"id": own.id, "noise_rate": own.noise_rate, "benign": own.benign})
    assert back.model_copy(update={"queues": own.queues}) == own and raw.id == f"{name}@raw"
    assert scenarios.loads(scenarios.dump(raw)) == raw and scenarios.load(f"{name}@triaged") == own
    # A queue is another game; that a network has other queues changes nothing of its own.
    assert scenarios.digest(raw) != scenarios.digest(own)
    assert scenarios.digest(own) == scenarios.digest(own.model_copy(update={"queues": ()}))


def test_a_name_with_a_queue_goes_wherever_a_name_goes(tmp_path: object) -> None:
    assert [s.id for s in options.scenario("hardened@raw")] == [f"{n}@raw" for n in scenarios.names("hardened")]
    assert [s.id for s in options.scenario("insider_repo_pivot@raw")] == ["insider_repo_pivot@raw"]
    path = f"{tmp_path}/mine@home.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(scenarios.dump(scenarios.load("insider_repo_pivot")))
    assert scenarios.load(path).id == "insider_repo_pivot" and scenarios.load(f"{path}@raw").id.endswith("@raw")
    _, params = jaxsim.make("insider_repo_pivot@raw")
    assert float(params.scenario.noise_rate) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("insider_repo_pivot@rae", "insider_repo_pivot: has no queue 'rae'; did you mean 'raw'?"),
        ("insider_repo_pivot@", "insider_repo_pivot: has no queue ''; its queues are triaged, raw"),
        ("insider_repo_pivot@raw@raw", "insider_repo_pivot@raw@raw: is not the name of a built-in scenario"),
        ("insider@raw", "insider@raw: is not the name of a built-in scenario"),
        ("nobody.yaml@raw", "nobody.yaml: "),
    ],
)
def test_a_queue_that_is_none_is_one_line(name: str, said: str) -> None:
    with pytest.raises(scenarios.ScenarioError) as caught:
        scenarios.load(name)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    with pytest.raises(argparse.ArgumentTypeError):
        options.scenario(name)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for each in NAMES:
        print(f"{each:40s}", *(f"{share:7.1%}" for share in outside(each)))
        sys.stdout.flush()

"""The network policies, and what trains them."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cells import NO_IDENTITIES

import scenarios
from jaxsim import actions, env, recurrent
from jaxsim.audit import moments, policy_training, ppo
from jaxsim.compile import dims_of
from jaxsim.one_episode import start
from jaxsim.policies import DEFAULT_EVIDENCE, EVIDENCE
from jaxsim.recurrent import MASKED, MEMORYLESS, PRIVILEGED, SEEING, SIGHTS, VIEWS, Learned, Weights
from jaxsim.rollouts import rollout
from jaxsim.types import CONFIRMED, Alerts, Dims, Forensics, Observation, Params


@pytest.fixture(autouse=True, scope="module")
def optax() -> Iterator[None]:
    """It mixes dtypes; and one optimiser for all that train alike, so that they share a compiled program."""
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "_optimiser", cache(ppo._optimiser))
        yield


DIMS = Dims(assets=6, identities=4, stages=3, max_lag=2, restore=True)
EXISTS = np.asarray([True] * 5 + [False] + [True] * 3 + [False])
WIDTH = 8
TOY = scenarios.loads(NO_IDENTITIES)
TOY_DIMS = dims_of([TOY])


def weights_of(seed: int, restore: bool = True) -> Weights:
    """Random weights, large enough that every input matters, with no action ahead."""
    drawn = recurrent.init_weights(jax.random.key(seed), WIDTH, restore)
    noise = iter(jax.random.split(jax.random.key(seed + 1), len(drawn)))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), drawn)._replace(
        wait_bias=jnp.zeros(())
    )


def random_observation(seed: int) -> Observation:
    """Alerts, forensic results and marks on entities that exist."""
    rng = np.random.default_rng(seed)
    there, k, f = np.flatnonzero(EXISTS), DIMS.alerts, DIMS.forensics
    assets, identities = there[there < DIMS.assets], there[there >= DIMS.assets]

    def floats(*shape: int) -> np.ndarray:
        return rng.random(shape).astype(np.float32)

    def ints(values: Any, size: int) -> np.ndarray:
        return rng.choice(values, size).astype(np.int32)

    obs = Observation(
        tick=np.int32(9),
        horizon=np.int32(40),
        personality=np.int32(-1),
        exists=EXISTS,
        value=floats(DIMS.entities) * EXISTS,
        marks=(floats(4, DIMS.entities) < 0.4) & EXISTS,
        alerts=Alerts(
            np.arange(k, dtype=np.int32) - 3,
            ints(5, k),
            ints([-1, *assets], k),
            ints([-1, *identities], k),
            floats(k),
            ints(10, k),
        ),
        forensics=Forensics(np.arange(f, dtype=np.int32) - 2, ints(there, f), floats(f) < 0.5, floats(f), ints(10, f)),
    )
    return jax.tree.map(jnp.asarray, obs)


# --- the network ----------------------------------------------------------------------------------------------------


def relabelling(seed: int) -> np.ndarray:
    """New place of each entity; padding stays."""
    rng, place = np.random.default_rng(seed), np.arange(DIMS.entities)
    for kind in (place[: DIMS.assets], place[DIMS.assets :]):
        there = kind[EXISTS[kind]]
        place[there] = rng.permutation(there)
    return place


def relabelled(obs: Observation, place: np.ndarray) -> Observation:
    """The same situation with its entities listed in another order."""
    old = np.argsort(place)

    def to(entity: Any) -> Any:
        return jnp.where(entity >= 0, place.astype(np.int32)[entity], -1)

    return obs._replace(
        value=obs.value[old],
        marks=obs.marks[:, old],
        alerts=obs.alerts._replace(asset=to(obs.alerts.asset), identity=to(obs.alerts.identity)),
        forensics=obs.forensics._replace(entity=to(obs.forensics.entity)),
    )


def play_observations(weights: Weights, view: str, many: list[Observation]) -> np.ndarray:
    """Logits, (T, actions), of the network that sees one observation after the other."""
    memory, logits = recurrent.no_history(DIMS, weights), []
    for obs in many:
        its, memory = FORWARD(weights, memory, FEATURES[view](obs))
        logits.append(np.asarray(its))
    return np.stack(logits)


FORWARD = jax.jit(partial(recurrent.forward, DIMS))
FEATURES = {view: jax.jit(partial(recurrent.features, DIMS, SIGHTS[view])) for view in (SEEING, MASKED, MEMORYLESS)}


@pytest.mark.parametrize("view", [SEEING, MASKED])
def test_relabelling_the_entities_relabels_the_actions(view: str) -> None:
    many, place = [random_observation(s) for s in range(3)], relabelling(1)
    others = [relabelled(obs, place) for obs in many]
    # All that tells entities apart but for what is known of them: two features of the place in the list.
    moved = [np.asarray(FEATURES[view](obs).entity)[np.argsort(place)] for obs in many]
    differs = [~np.isclose(a, FEATURES[view](b).entity) for a, b in zip(moved, others, strict=True)]
    places = np.flatnonzero(np.any(differs, axis=(0, 1)))
    assert len(places) == 2

    weights = weights_of(3)
    blind = weights._replace(embed=weights.embed.at[places].set(0.0))
    verb, entity = actions.table(DIMS)
    new = np.asarray(actions.encode(DIMS, jnp.asarray(verb), jnp.asarray(np.where(entity < 0, 0, place[entity]))))
    before, after = (play_observations(blind, view, x) for x in (many, others))
    np.testing.assert_allclose(after[:, new], before, rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.1, "else nothing was relabelled"
    # With them the place in the list may matter, as a positional plan would need.
    assert np.abs(play_observations(weights, view, others)[:, new] - play_observations(weights, view, many)).max() > 0.1


def test_a_masked_policy_reads_no_evidence() -> None:
    """Bit for bit the same, whatever the alerts, the forensic results and the confirmations are."""
    many, others = ([random_observation(s) for s in seeds] for seeds in ((0, 1, 2), (3, 4, 5)))
    mixed = [
        a._replace(alerts=b.alerts, forensics=b.forensics, marks=a.marks.at[CONFIRMED].set(b.marks[CONFIRMED]))
        for a, b in zip(many, others, strict=True)
    ]
    for view, same in ((MASKED, True), (SEEING, False)):
        logits = [play_observations(weights_of(4), view, x) for x in (many, mixed)]
        assert np.array_equal(*logits) == same
    assert not np.array_equal(play_observations(weights_of(4), MASKED, others), logits[0])


def test_a_memoryless_policy_sees_what_is_there_and_no_more() -> None:
    """At every tick what it would do at a first one, where it does what one that remembers would."""
    many = [random_observation(s) for s in range(3)]
    weights, legal = weights_of(4), np.asarray(actions.legal_mask(DIMS, EXISTS))
    one, other = (play_observations(weights, view, many) for view in (MEMORYLESS, SEEING))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[2] - other[2])[legal].max() > 1e-3
    np.testing.assert_array_equal(one[2], play_observations(weights, MEMORYLESS, many[2:])[0])
    found = np.asarray(recurrent.chances(DIMS, weights, many[2]))
    np.testing.assert_allclose(found, jax.nn.softmax(one[2]), rtol=1e-5, atol=1e-7)
    assert found.sum() == pytest.approx(1, abs=1e-5) and not found[~legal].any()
    assert MEMORYLESS not in VIEWS and MEMORYLESS in recurrent.POLICIES  # the audit goes on without it


def test_only_a_privileged_policy_sees_the_truth() -> None:
    params = env.make_params(TOY, TOY_DIMS, "classic", "linear", "any")
    state = jax.jit(start, static_argnums=0)(TOY_DIMS, jax.random.key(0), params)
    other = state._replace(compromised=~state.compromised, attack=~state.attack)
    obs = jax.jit(env.observe, static_argnums=0)(TOY_DIMS, state, params)
    features = jax.jit(partial(recurrent.features, TOY_DIMS, SIGHTS[PRIVILEGED]))
    true, false = (features(obs, s) for s in (state, other))
    assert not np.array_equal(true.entity, false.entity) and not np.array_equal(true.overall, false.overall)
    assert {view for view in VIEWS if recurrent.POLICIES[view].privileged} == {PRIVILEGED}


def test_illegal_actions_are_never_taken() -> None:
    legal = np.asarray(actions.legal_mask(DIMS, EXISTS))
    draws = jnp.concatenate([jnp.linspace(0.0, 1.0, 2001)[:-1], jnp.float32([2.0**-24, 1 - 2.0**-24])])
    for seed in range(20):
        logits = play_observations(weights_of(seed), SEEING, [random_observation(seed)])[0]
        assert (logits[~legal] == recurrent.ILLEGAL).all() and (np.abs(logits[legal]) < 100).all()
        # Also where MONITOR, first in the table, has no probability at all.
        for first in (logits[0], -1e9):
            taken = jax.vmap(partial(recurrent.sample, jnp.asarray(logits).at[0].set(first)))(draws)
            assert legal[np.asarray(taken)].all()


@pytest.mark.parametrize("restore", [False, True])
def test_a_network_policy_plays_no_invalid_action(restore: bool) -> None:
    """In a padded scenario, sampling, and every verb that there is a target for."""
    dims = TOY_DIMS._replace(assets=4, identities=2, restore=restore)
    params = env.make_params(TOY, dims, "hardened1" + "+liftable" * restore, "operational", "any")
    policy = Learned(weights_of(7, restore), np.bool_(False), SIGHTS[SEEING])
    stats = rollout(env.Env(dims), params, recurrent.POLICIES[SEEING], policy, jax.random.key(0), 64)
    assert stats.signals.invalid.sum() == 0 and (stats.length == TOY.horizon).all()
    assert (stats.verbs.sum(axis=0) > 0).tolist() == [True] * 5 + [False, restore], "there is nobody to revoke"


def test_samples_come_as_often_as_the_logits_say() -> None:
    logits = jnp.float32([0.0, 1.0, -1e9, 2.5, -3.0, 0.5, -1e9])
    many = 100_000
    taken = jax.vmap(partial(recurrent.sample, logits))((np.arange(many, dtype=np.float32) + 0.5) / many)
    shares = np.bincount(taken, minlength=len(logits)) / many
    np.testing.assert_allclose(shares, jax.nn.softmax(logits), atol=3 / many)


# --- training -------------------------------------------------------------------------------------------------------

SETTINGS = ppo.Settings(
    updates=40, clone_updates=25, lanes=64, epochs=3, minibatches=2, width=WIDTH, critic_width=16, learning_rate=2e-2
)
TOY_PARAMS: Params = jax.tree.map(
    lambda x: jnp.asarray(x)[None], env.make_params(TOY, TOY_DIMS, "classic", "linear", "any")
)
TEACHER = (EVIDENCE, jax.tree.map(lambda x: jnp.asarray(x)[None], DEFAULT_EVIDENCE))


@jax.jit
def played(learner: ppo.Learner, share: Any) -> ppo.Batch:
    """What a learner plays, for a share of advantages (lambda) that is traced: one program for all."""
    settings, key = SETTINGS._replace(gae_lambda=share), jax.random.key(3)
    return ppo.collect(TOY_DIMS, SEEING, None, (), learner, TOY_PARAMS, key, TOY.horizon, settings)


def collected(share: float) -> tuple[ppo.Learner, ppo.Batch]:
    """A learner at its beginning, and what it played."""
    weights, critic = weights_of(1, restore=False), recurrent.init_critic(jax.random.key(2), 16)
    learner = ppo.Learner(weights, critic, ())
    return learner, played(learner, share)


@pytest.fixture(scope="module")
def batch() -> tuple[ppo.Learner, ppo.Batch]:
    return collected(SETTINGS.gae_lambda)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_advantages_are_those_of_their_definition(share: float) -> None:
    """A_t = sum over k of share^k delta_(t+k), delta_t = r_t + V_(t+1) - V_t, V = 0 after the end."""
    learner, batch = collected(share)
    value = jax.vmap(jax.vmap(partial(recurrent.criticise, learner.critic)))(batch.truth) * SETTINGS.value_scale
    reward, live, value = (np.asarray(x, np.float64) for x in (batch.reward, batch.live, value))
    lengths = live.sum(axis=0).astype(int)
    assert len(set(lengths.tolist())) > 2 and not reward[live == 0].any()
    for lane, length in enumerate(lengths.tolist()):
        r, v = reward[:length, lane], np.append(value[:length, lane], 0.0)
        delta = r + v[1:] - v[:-1]
        wanted = [sum(share**k * d for k, d in enumerate(delta[t:])) for t in range(length)]
        np.testing.assert_allclose(batch.advantage[:length, lane], wanted, rtol=1e-3, atol=1e-3)
        if share == 1.0:  # nothing is left of the critic: the target is the return to come
            np.testing.assert_allclose(batch.target[:length, lane], np.cumsum(r[::-1])[::-1], rtol=1e-3, atol=1e-3)
    assert not np.asarray(batch.advantage)[live == 0].any()


def test_what_was_played_is_what_the_network_would_play(batch: tuple[ppo.Learner, ppo.Batch]) -> None:
    learner, played = batch
    again = np.asarray(ppo.replay_network(TOY_DIMS, learner.weights, played.features))
    taken = np.take_along_axis(again, np.asarray(played.action)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(taken, played.log_p, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("phase", [ppo.CLONING, ppo.CRITIC, ppo.PPO])
def test_a_step_down_the_gradient_lowers_the_loss(batch: tuple[ppo.Learner, ppo.Batch], phase: str) -> None:
    learner, played = batch
    both = learner.weights, learner.critic
    loss = jax.jit(jax.value_and_grad(partial(ppo.loss, TOY_DIMS, SETTINGS, phase), has_aux=True))
    (before, entropy), slope = loss(both, played)
    steep = sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(slope))
    step = 1e-3 / steep**0.5
    (after, _), _ = loss(jax.tree.map(lambda x, g: x - step * g, both, slope), played)
    # To first order it falls by step x |gradient|^2.
    assert float(before - after) == pytest.approx(step * steep, rel=0.2)
    assert 0 < float(entropy) < np.log(TOY_DIMS.actions) + 1e-5
    chex.assert_tree_all_finite(slope)


def mean_return(weights: Weights) -> float:
    """Of the policy as it samples, on episodes that were not trained on."""
    params = env.make_params(TOY, TOY_DIMS, "classic", "linear", "any")
    policy = Learned(weights, np.bool_(False), SIGHTS[SEEING])
    stats = rollout(env.Env(TOY_DIMS), params, recurrent.POLICIES[SEEING], policy, jax.random.key(77), 512)
    return float(stats.episode_return.mean())


@pytest.fixture(scope="module")
def trained() -> tuple[Weights, list[tuple[str, float]]]:
    log: list[tuple[str, float]] = []
    weights = ppo.train(
        TOY_DIMS, SEEING, TOY_PARAMS, SETTINGS, 5, advance=lambda p, r: log.append((p, float(r.episode_return)))
    )
    return weights, log


def test_training_improves_the_return(trained: tuple[Weights, list[tuple[str, float]]]) -> None:
    weights, log = trained
    untrained = mean_return(recurrent.init_weights(jax.random.key(0), WIDTH))
    assert mean_return(weights) > untrained + 2.0
    assert [phase for phase, _ in log] == ["PPO"] * SETTINGS.updates
    assert np.mean([x for _, x in log[-5:]]) > log[0][1] + 2.0


def test_the_same_seed_gives_the_same_weights(trained: tuple[Weights, list[tuple[str, float]]]) -> None:
    again, other = (ppo.train(TOY_DIMS, SEEING, TOY_PARAMS, SETTINGS, seed) for seed in (5, 6))
    chex.assert_trees_all_equal(again, trained[0])
    assert not np.array_equal(other.embed, trained[0].embed)


def test_cloning_comes_first_and_learns_the_teacher() -> None:
    log: list[tuple[str, float]] = []

    def note(phase: str, report: ppo.Report) -> None:
        log.append((phase, float(report.loss)))

    ppo.train(TOY_DIMS, SEEING, TOY_PARAMS, SETTINGS, 5, TEACHER, note)
    assert [phase for phase, _ in log] == ["cloning"] * SETTINGS.clone_updates + ["PPO"] * SETTINGS.updates
    assert log[SETTINGS.clone_updates - 1][1] < 0.7 * log[0][1]


def test_going_on_teaches_a_new_critic_before_the_policy_changes() -> None:
    start, log = weights_of(1, restore=False), []
    settings = SETTINGS._replace(critic_updates=6, updates=0)

    def go_on(settings: ppo.Settings) -> Weights:
        log.clear()
        return ppo.train(
            TOY_DIMS, SEEING, TOY_PARAMS, settings, 5, None, lambda p, r: log.append((p, float(r.loss))), start
        )

    chex.assert_trees_all_equal(go_on(settings), start)
    assert [phase for phase, _ in log] == ["critic"] * 6 and log[-1][1] < log[0][1]
    assert not np.array_equal(go_on(settings._replace(updates=1)).embed, start.embed)
    assert [phase for phase, _ in log] == ["critic"] * 6 + ["PPO"]


@pytest.mark.parametrize("forensics", [True, False])
def test_the_teacher_does_only_what_its_pupil_can(forensics: bool) -> None:
    """Who never investigates cannot copy one that does: each such action would cost it 1e9."""
    args = policy_training.parser().parse_args(["--rules", "classic", "--reward", "linear"])
    taught = policy_training.best_of_family([TOY, TOY], args, policy_training.paid_by(args), forensics)
    assert taught.repeats.shape == (2,)
    assert (taught.investigate_at > 1.0).all() == (not forensics)


def test_a_step_on_features_as_they_are_does_what_it_does_on_normalised_ones(
    batch: tuple[ppo.Learner, ppo.Batch],
) -> None:
    learner, played = batch
    there = np.asarray(played.truth.exists)
    normal = moments.moments(played.truth)
    given, normalised = jax.tree.map(np.asarray, (played.truth, normal)), {}
    for name, counts in (("entity", there), ("overall", np.ones(there.shape[:2], bool))):
        mean, deviation = getattr(given[1], name)
        seen = getattr(given[0], name)[counts].astype(np.float64)
        varied = seen.std(axis=0) > 0.03
        np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(deviation[varied], seen.std(axis=0)[varied], rtol=1e-3)
        assert varied.any() and (deviation[seen.std(axis=0) == 0] == 1).all()
        normalised[name] = (getattr(given[0], name) - mean) / deviation
    others = played.truth._replace(**normalised)

    value = jax.vmap(jax.vmap(recurrent.criticise, (None, 0)), (None, 0))
    network = partial(ppo.replay_network, TOY_DIMS)
    for step, outputs in ((learner.weights, network), (learner.critic, value)):
        raw = moments.as_they_are(step, normal)
        np.testing.assert_allclose(outputs(raw, played.truth), outputs(step, others), rtol=1e-3, atol=1e-3)
        assert not np.allclose(outputs(step, played.truth), outputs(step, others), atol=0.01), (
            "else nothing is normalised"
        )
        # A step that moves nothing leaves every bit, and one from anywhere is the sum of both: it is linear.
        nothing = jax.tree.map(jnp.zeros_like, step)
        chex.assert_trees_all_equal(jax.tree.map(jnp.add, step, moments.as_they_are(nothing, normal)), step)
        twice = moments.as_they_are(jax.tree.map(lambda x: 2 * x, step), normal)
        chex.assert_trees_all_close(twice, jax.tree.map(lambda x: 2 * x, raw), rtol=1e-5, atol=1e-5)


def test_lanes_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="lanes = 65 is no multiple of minibatches = 2"):
        ppo.train(TOY_DIMS, SEEING, TOY_PARAMS, SETTINGS._replace(lanes=65), 0)

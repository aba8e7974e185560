"""No prompt tells what is hidden: by what `prompting` imports, by hidden worlds, and by a reader who tries.

The reader is a linear classifier on the words of a prompt. Before anything was observed it must do no better than
chance at any hidden quantity; with alerts in view it must do better, or it would show nothing.
"""

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from worlds import DIMS, HIDDEN, SCENARIO, params_of, play, scrambled

import prompting
from jaxsim import env
from jaxsim.actions import table
from jaxsim.one_episode import episode_keys
from jaxsim.rules import PERSONALITIES
from jaxsim.stages import unpacked
from jaxsim.types import INVESTIGATE, Observation, State

INVENTORY = prompting.inventory(SCENARIO, DIMS)
SOURCES = sorted(Path(prompting.__file__).parent.glob("*.py"))


def render(observation: Observation) -> list[str]:
    """Of each episode, both layouts in one text."""
    return [
        "\n".join(x)
        for x in zip(*(prompting.render(observation, INVENTORY, y) for y in prompting.LAYOUTS), strict=True)
    ]


# --- what the program can read ----------------------------------------------------------------------------------------

# All that `prompting` may use: checks of arguments, sizes, names, the action table, constants and the observation.
ALLOWED = {
    "scenarios": {"Scenario", "SIGNALS"},
    "jaxsim": {"check"},
    "jaxsim.actions": {"table", "INVALID"},
    "jaxsim.compile": {"check_dims", "check_fits", "dims_of"},
    "jaxsim.names": {"entity_names"},
    "jaxsim.rules": {"PERSONALITIES"},
    "jaxsim.types": {"CUT_OFF", "INVESTIGATE", "MONITOR", "RESTORE", "VERBS", "Dims", "Observation"},
}
LIBRARIES = {"collections", "functools", "json", "re", "typing", "jax", "numpy"}


def used(source: str) -> set[tuple[str, str]]:
    """(module, name) of everything of the simulator that a module's source uses, and (module, '') of imports."""
    tree, found = ast.parse(source), set[tuple[str, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(x.name, "") for x in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "", x.name) for x in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "scenarios":
            found.add(("scenarios", node.attr))
    return found


def forbidden(source: str) -> set[tuple[str, str]]:
    own = {"prompting", *(f"prompting.{path.stem}" for path in SOURCES)}
    return {
        (module, name)
        for module, name in used(source)
        if not (module in own or module.split(".")[0] in LIBRARIES or (module, name) == ("scenarios", ""))
        and name not in ALLOWED.get(module, set())
    }


def test_prompting_imports_nothing_that_holds_hidden_truth() -> None:
    assert len(SOURCES) > 4
    for path in SOURCES:
        assert forbidden(path.read_text()) == set(), path.name


@pytest.mark.parametrize(
    "line",
    [
        "from jaxsim.types import State",
        "from jaxsim import env",
        "import jaxsim.env",
        "import jaxsim",
        "from jaxsim.types import ScenarioArrays",
        "import scenarios\nscenarios.load('x')",
        "def f():\n    from jaxsim.one_episode import start",
    ],
)
def test_an_import_of_hidden_truth_would_be_noticed(line: str) -> None:
    assert forbidden(line)


def test_render_takes_an_observation_and_an_inventory() -> None:
    assert get_type_hints(prompting.render) == {
        "observation": Observation,
        "inventory": prompting.Inventory,
        "layout": str,
        "return": list[str],
    }
    assert prompting.Inventory._fields == ("dims", "names", "labels", "entities", "actions")


# --- hidden worlds ----------------------------------------------------------------------------------------------------


# What RESTORE leaves in sight are marks like those of other verbs, so that the rules here need no verb of their own.
RULES = ("hardened", "hardened1+foothold+eradication+believable_paths")


@cache
def episodes(rules: str = "hardened") -> State:
    """Busy episodes under hardened rules, NumPy arrays (E, T + 1)."""
    return jax.tree.map(np.asarray, play(params_of(rules), *worlds.busy_episodes()))


@jax.jit
def observe(state: State) -> Observation:
    return env.observe(DIMS, state, params_of("hardened"))


def prompt(state: State) -> str:
    (text,) = render(jax.tree.map(lambda x: np.asarray(x)[None], observe(state)))
    return text


moments = st.tuples(st.integers(0, 31), st.integers(0, SCENARIO.horizon))


@given(st.sampled_from(RULES), moments, moments, st.sets(st.sampled_from(HIDDEN), min_size=1), st.booleans())
def test_a_prompt_changes_with_nothing_hidden(
    rules: str, here: tuple[int, int], there: tuple[int, int], fields: set[str], strangely: bool
) -> None:
    """Whether these hidden parts are those of another moment of another episode, or what no episode would have."""
    state, other = (jax.tree.map(lambda x, m=m: x[m], episodes(rules)) for m in (here, there))
    hidden = {f: jax.tree.map(scrambled, getattr(state, f)) if strangely else getattr(other, f) for f in fields}
    assert prompt(state._replace(**hidden)) == prompt(state)


@pytest.mark.parametrize("field", ["tick", "marks", "alerts", "forensics"])
def test_a_prompt_changes_with_what_is_seen(field: str) -> None:
    state = jax.tree.map(lambda x: x[3, 40], episodes())
    other = jax.tree.map(lambda x: x[9, 60], episodes())
    assert prompt(state._replace(**{field: getattr(other, field)})) != prompt(state)


@pytest.mark.parametrize("rules", RULES)
def test_hidden_worlds_have_the_same_prompts(rules: str) -> None:
    """The same noise and actions, but other attackers and attacks, of which nothing shows."""
    states, _ = worlds.play_worlds(rules)
    few = jax.tree.map(lambda x: x[:12, :, ::4], states)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[3:]), few)
    texts = np.reshape(np.asarray(render(jax.jit(jax.vmap(observe))(flat)), object), few.tick.shape)
    assert (texts == texts[:1]).all() and len(set(texts[0].flat)) > 20
    assert len({tuple(x) for x in few.succeeded[:, :, -1].tolist()}) > 3, "the worlds are not alike"


# --- a reader who tries -----------------------------------------------------------------------------------------------

EARLY, LATE = 4, 60  # ticks
EPISODES = 6_000  # half of them to learn from


class Read(NamedTuple):
    """Prompts of episodes at one tick, and what is hidden in them."""

    texts: list[str]
    quiet: np.ndarray  # (E,) bool, no alert and no forensics in view
    attack: np.ndarray  # (E,) int
    personality: np.ndarray  # (E,) int
    target: np.ndarray  # (E,) int, entity of the first stage


@cache
def played_at(tick: int, rules: str, acting: bool) -> Read:
    """Episodes whose defender waits, or sets controls at random; it never investigates."""
    params, verbs = params_of(rules), table(DIMS)[0]
    rng = np.random.default_rng(11)
    controls = rng.choice(np.flatnonzero(verbs > INVESTIGATE), (EPISODES, tick))
    plans = np.where(acting & (rng.random((EPISODES, tick)) < 0.5), controls, 0).astype(np.int32)

    @jax.jit
    def run(keys: Any, plans: Any) -> tuple[State, State]:
        def episode(key: Any, plan: Any) -> tuple[State, State]:
            first = worlds.start(DIMS, key, params)
            states = worlds.play_on(params, first, key, plan)
            return first, jax.tree.map(lambda x: x[-1], states)

        return jax.vmap(episode)(keys, plans)

    first, state = run(episode_keys(jax.random.key(12), EPISODES), jnp.asarray(plans))
    obs = jax.jit(jax.vmap(lambda s: env.observe(DIMS, s, params)))(state)
    free = np.asarray(unpacked(first.supported, DIMS.stages)) & np.asarray(params.scenario.stage_exists)
    stage = np.where(free, np.asarray(first.order), np.iinfo(np.int32).max).argmin(1)
    asset, identity = (np.asarray(first.targets)[np.arange(EPISODES), kind, stage] for kind in (0, 1))
    return Read(
        render(obs),
        np.asarray((obs.alerts.number.max(1) < 0) & (obs.forensics.number.max(1) < 0)),
        np.asarray(first.attack).astype(int),
        np.asarray(first.who),
        np.where(asset >= 0, asset, identity),
    )


def words(text: str) -> set[str]:
    """The words of a prompt: by line, and numbers in tens."""
    found = set()
    for line in text.split("\n")[:-1]:  # of the compact layout, lists by their head
        head, _, rest = line.partition(": ")
        found |= {f"{head}: {word}" for word in re.split(r"[ ,]+", rest)} | {head}
        found |= {f"{head.split(' ')[0]} {number[:-1] or 0}x" for number in re.findall(r"(\d+)@", rest)}
    return found | set(re.findall(r"[\w.-]+", text))


def accuracy(texts: list[str], hidden: np.ndarray) -> tuple[float, float]:
    """Of a linear classifier on the words, learnt from one half of the prompts, on the other; and the best by chance.

    By chance is always to say what is most common in the other half, and four standard errors of luck.
    """
    half = len(texts) // 2
    seen = [words(text) for text in texts]
    count: dict[str, int] = {}
    for word in (w for x in seen[:half] for w in x):
        count[word] = count.get(word, 0) + 1
    column = {w: k for k, w in enumerate(sorted(w for w, n in count.items() if 10 <= n < half))}
    x = np.zeros((len(texts), len(column) + 1))
    x[:, -1] = 1
    for row, its in enumerate(seen):
        x[row, [column[w] for w in its if w in column]] = 1
    kinds, y = np.unique(hidden, return_inverse=True)
    learn, of = x[:half], np.eye(len(kinds))[y[:half]]
    weights = np.linalg.solve(learn.T @ learn + 10.0 * np.eye(x.shape[1]), learn.T @ of)
    right = float(np.mean((x[half:] @ weights).argmax(1) == y[half:]))
    most = np.bincount(y[half:]).max() / (len(texts) - half)
    return right, float(most + 4 * np.sqrt(most * (1 - most) / (len(texts) - half)))


HIDDEN_FROM: dict[str, Callable[[Read], np.ndarray]] = {
    "attack": lambda r: r.attack,
    "personality": lambda r: r.personality,
    "target": lambda r: r.target,
}


def quiet(rules: str) -> Read:
    """Only the prompts in which nothing was observed yet, all of one tick: how long nothing came would tell."""
    read = played_at(EARLY, rules, acting=True)
    kept = np.flatnonzero(read.quiet)
    return Read([read.texts[i] for i in kept], *(x[kept] for x in read[1:]))


@pytest.mark.parametrize("what", HIDDEN_FROM)
def test_before_anything_is_observed_a_reader_learns_nothing(what: str) -> None:
    read = quiet("hardened")
    assert len(read.texts) > 1_000 and len(set(read.texts)) > 300, "the prompts differ, by controls"
    hidden = HIDDEN_FROM[what](read)
    assert len(set(hidden.tolist())) >= {"attack": 2, "personality": len(PERSONALITIES), "target": 5}[what]
    right, chance = accuracy(read.texts, hidden)
    assert right <= chance


def test_a_reader_sees_the_controls() -> None:
    """The same reader, on the same prompts, of what they do say."""
    read = quiet("hardened")
    isolated = np.asarray(["Isolated" in text for text in read.texts])
    right, chance = accuracy(read.texts, isolated)
    assert right > chance and right > 0.99


def test_a_reader_sees_the_personality_where_the_rules_show_it() -> None:
    read = quiet("classic")
    right, chance = accuracy(read.texts, read.personality)
    assert right > chance and right > 0.99


def test_with_alerts_in_view_a_reader_knows_more_of_the_attack() -> None:
    read = played_at(LATE, "hardened", acting=False)
    assert not read.quiet.all()
    right, chance = accuracy(read.texts, read.attack)
    assert right > chance

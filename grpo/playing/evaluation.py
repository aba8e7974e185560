"""How a language model fares as a defender, beside policies that play the same episodes.

    jaxsim-soc evaluate-model --model embedded --out out/base
    jaxsim-soc evaluate-model --model embedded --adapter out/run/adapter --episodes 100 --out out/trained

The report is DIR/report.md, its numbers DIR/rows.json and DIR/rows.csv. What was said is kept tick by tick: a run that
was interrupted goes on where it stopped when the same command is given again. The episodes are those of
`evaluation_seed(--seed)`, from which nothing is trained or searched.
"""

import fcntl
import json
import shlex
import sys
import time
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import prompting
import scenarios
from grpo.model import models
from grpo.model.contents import fingerprint
from grpo.model.embedded import ModelError
from grpo.playing import play
from grpo.playing.play import Played, Respond, Turn, is_turn
from grpo.reporting import report, transcript_page
from grpo.reporting.report import Told
from grpo.training.settings import LEARNED, MAX_EPISODES, OPEN_LOOP, OTHERS
from jaxsim import Env, noise, options, policies, recurrent, reward, rollouts
from jaxsim.audit import checkpoint, search
from jaxsim.audit.arena import EVIDENCE, PLAN, Arena, Candidate, make_arenas
from jaxsim.audit.budgets import BUDGETS
from jaxsim.compile import dims_of
from jaxsim.env import make_params
from jaxsim.names import action_text
from jaxsim.rules import restores
from jaxsim.types import Params
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli, json_lines

EVALUATION = 0x6576616C  # folded into the key of --seed; the search folds in 1
BUDGET = "tiny"  # of the search
SHUFFLED = ("alerts", "forensics")  # what a policy that reads cannot do without
BASE, TRAINED = "base", "trained"
ALWAYS_THERE = ("random", "monitor")  # every other row is compared to them
READS = ("heuristic", "evidence", LEARNED)
PLAN_TICKS = 64


class Campaign(NamedTuple):
    """One scenario, ready to play."""

    scenario: scenarios.Scenario
    params: Params
    inventory: prompting.Inventory
    keys: jax.Array  # (E,) of its episodes

    @property
    def env(self) -> Env:
        return Env(self.inventory.dims)


class Speaker(NamedTuple):
    """Whoever answers."""

    respond_in: Callable[[Campaign, str], Respond]  # the campaign, the first prompt of the play
    count: Callable[[Sequence[str]], int]  # tokens of answers
    about: dict[str, Any]


def evaluation_seed(seed: int) -> int:
    """The seed of the evaluation's episodes: other ones than those that training with the same --seed plays."""
    return int(jax.random.bits(jax.random.fold_in(noise.root(seed), EVALUATION), dtype=np.uint32))


# --- what to do -----------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    p, switch, whole, one_of = cli.parser(__doc__), BooleanOptionalAction, cli.integer, cli.one_of
    # fmt: off
    p.add_argument("--model", default="embedded", metavar="NAME", help="embedded, a folder, or a hub id")
    p.add_argument("--adapter", type=cli.input_folder, metavar="DIR",
                   help="a trained adapter for that model: a row of its own")
    p.add_argument("--base", action=switch, default=True, help="with --adapter: play the model without it as well")
    options.add_scenarios(p, default="published")
    options.add_rules(p)
    options.add_reward(p)
    options.add_personality(p)
    p.add_argument("--episodes", type=whole(2, MAX_EPISODES), default=30, metavar="N",
                   help="of each campaign (default: 30)")
    options.add_seed(p)
    p.add_argument("--out", type=cli.output_folder, required=True, metavar="DIR",
                   help="folder of the report, and of what was said")
    p.add_argument("--restart", action="store_true", help="begin anew in a folder that holds another run")
    p.add_argument("--policies", type=one_of(OTHERS), nargs="*", default=list(OTHERS), metavar="NAME",
                   help=f"rows beside {' and '.join(ALWAYS_THERE)} (default: {' '.join(OTHERS)})")
    p.add_argument("--shuffle", action=switch, default=True,
                   help="play again on another episode's evidence (a base model only where there is no adapter)")
    p.add_argument("--transcripts", type=whole(0), default=2, metavar="N", help="pages of each campaign (default: 2)")
    p.add_argument("--constrained", action=switch, default=True, help="let the model say legal answers only")
    p.add_argument("--temperature", type=temperature, default=0.0, metavar="T", help="0, the default, is greedy")
    p.add_argument("--max-new-tokens", type=whole(1, 4096), default=40, metavar="N", help="default: 40")
    p.add_argument("--layout", type=one_of(prompting.LAYOUTS), default="compact", metavar="NAME",
                   help=f"of the prompts: {', '.join(prompting.LAYOUTS)} (default: compact)")
    p.add_argument("--asking", type=one_of(play.ASKING), default=play.ALWAYS_ASK, metavar="WHEN",
                   help="always (default), or on-change: MONITOR while the model's view stays the same")
    p.add_argument("--batch", type=cli.positive_int, default=32, metavar="N", help="prompts at a time (default: 32)")
    p.add_argument("--four-bit", action="store_true", help="keep the weights in 4 bits")
    p.add_argument("--dtype", type=one_of(("auto", *models.DTYPES)), default="auto", metavar="NAME",
                   help=f"of the weights: auto, {', '.join(models.DTYPES)} (default: auto)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    p.add_argument("--threads", type=cli.positive_int, metavar="N", help="of torch (default: its own choice)")
    p.add_argument("--offline", action="store_true", help="ask no network for the model")
    # fmt: on
    return p


def parse_args(argv: Sequence[str] | None) -> Any:
    args = parser().parse_args(argv)
    if args.adapter is None and not args.base:
        cli.fail("--no-base without --adapter leaves no model to play; give an adapter")
    if args.adapter is not None:
        check_adapter(args.adapter, args.model)
    args.scenario = options.chosen(args.scenario or [options.scenario("published")])
    args.command = shlex.join(["jaxsim-soc", "evaluate-model", *(sys.argv[1:] if argv is None else argv)])
    return args


def check_adapter(adapter: Path, model: str) -> None:
    """Fail for an adapter that could not be loaded once the model without it has played."""
    if (adapter / "adapter_config.json").is_file():
        try:
            models.check_adapter(adapter, model, models.identity_of(model))
        except ModelError as error:
            cli.fail(f"--adapter: {error}")


def temperature(text: str) -> float:
    """The type of --temperature."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value <= 100:
        return value
    raise ArgumentTypeError(f"{text!r} is not a number from 0 to 100, such as 0.7")


def settings(args: Any) -> dict[str, Any]:
    """All that the answers depend on, as JSON."""
    names = "rules reward personality episodes seed model constrained temperature layout asking max_new_tokens"
    return {
        "scenario": [s.id for s in args.scenario],
        **{name: getattr(args, name) for name in (*names.split(), "four_bit", "dtype", "device")},
        "adapter": args.adapter and str(args.adapter),
        **{f"contents of {s.id}": scenarios.digest(s) for s in args.scenario},
        "contents of the model": fingerprint(Path(args.model)),
        "contents of the adapter": args.adapter and fingerprint(args.adapter),
        "simulator_version": SIMULATOR_VERSION,
        "format_version": prompting.FORMAT_VERSION,
    }


# --- the folder -----------------------------------------------------------------------------------------------------


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep others out of it. Fails when another process writes there."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    with open(out / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cli.fail(f"--out {out}: another evaluation is writing there; wait for it, or give another --out")
        yield


def begin(out: Path, wanted: dict[str, Any], restart: bool) -> None:
    """Note the settings. Fails when the folder holds a run of others; an adapter may join its base."""
    manifest = out / "manifest.json"
    remedy = "give another --out, or --restart to begin anew there"
    if restart:
        for path in (manifest, out / "search.json", *(out / "parts").glob("*.json*")):
            path.unlink(missing_ok=True)
    elif manifest.exists():
        try:
            held = dict(json.loads(manifest.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            cli.fail(f"--out {out}: manifest.json there cannot be read; {remedy}")
        # An adapter may join what was said without one, and take the place of one that has said nothing yet.
        joins = wanted["adapter"] and (held.get("adapter") is None or not _spoken(out, TRAINED))
        for name in dict.fromkeys([*wanted, *held]):
            old, new = held.get(name), wanted.get(name)
            what = f"contents of the {name}"
            alike = held.get(what) is not None and held.get(what) == wanted.get(what)  # however it is spelled
            if old != new and not alike and not (joins and name in ("adapter", "contents of the adapter")):
                cli.fail(f"--out {out} holds a run with {name} = {old!r:.80}, not {new!r:.80}; {remedy}")
    elif any((out / "parts").iterdir()):
        cli.fail(f"--out {out} holds parts of a run, but not the manifest.json that says of which; {remedy}")
    cli.write_json(manifest, wanted)


def _spoken(out: Path, name: str) -> bool:
    """Whether anything is kept that a model of this name said."""
    ends = (f"-{name}.jsonl", f"-{name}-shuffled.jsonl")
    return any(p.stat().st_size for p in (out / "parts").iterdir() if p.name.endswith(ends))


def read_part(path: Path, episodes: int) -> list[dict[str, Any]]:
    """The whole lines of a part, one a tick; a last one that was cut off is removed."""
    try:
        return json_lines.resume(path, partial(is_turn, episodes))
    except ValueError as error:
        cli.fail(str(error))


# --- other policies -------------------------------------------------------------------------------------------------


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
    learned = checkpoint.own(args.rules, args.reward, recurrent.SEEING)
    if LEARNED in args.policies and learned.is_file():
        try:
            made = checkpoint.load(learned)
        except ValueError as error:
            cli.fail(f"{error}, or leave {LEARNED} out of --policies")
        found[LEARNED] = Candidate(LEARNED, recurrent.POLICIES[made.view], made.learned)
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


def tell(campaign: Campaign, name: str, stats: Any, actions: np.ndarray) -> Told:
    """What a row is measured from."""
    return report.tell(campaign.inventory, campaign.params, campaign.keys, name, campaign.scenario.id, stats, actions)


# --- the model ------------------------------------------------------------------------------------------------------


def load(args: Any, adapter: Path | None) -> Speaker:
    """The model. Fails when it cannot be loaded."""
    import torch

    from grpo.model import decode, grammar

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        loaded = models.load(
            args.model, adapter, four_bit=args.four_bit, dtype=args.dtype, device=args.device, offline=args.offline
        )
    except ModelError as error:
        cli.fail(f"--model: {error}")
    decoder = decode.Decoder(loaded.model, loaded.tokenizer)
    # Free text has a close call every few words: settled one by one in bfloat16, it would take ten times as long.
    settle = args.constrained or loaded.about["dtype"] == "float32"
    sampling = decode.Sampling(args.temperature, args.max_new_tokens, settle)

    def respond_in(campaign: Campaign, opening: str) -> Respond:
        if not settle:  # nothing that was said at another tick may matter, or a resumed run would differ
            decoder.pin(decode.chat_tokens(loaded.tokenizer, prompting.chat(opening, campaign.inventory)))
        rules = grammar.matcher(loaded.tokenizer, campaign.inventory) if args.constrained else None
        likely = play.likely_answers(loaded.tokenizer, [campaign.inventory])
        return play.responder(
            decoder, sampling, campaign.inventory, matcher=rules, seed=args.seed, batch=args.batch, likely=likely
        )

    def count(texts: Sequence[str]) -> int:
        return sum(map(len, loaded.tokenizer(list(texts), add_special_tokens=False)["input_ids"])) if texts else 0

    return Speaker(respond_in, count, loaded.about)


def play_model(
    args: Any,
    campaign: Campaign,
    name: str,
    speak: Callable[[], Speaker],
    advance: Callable[[str], None],
    shuffle: tuple[str, ...] = (),
) -> tuple[Played, float, int]:
    """Play or go on playing: what was played, seconds of answering, tokens said. Each tick is kept once it is done."""
    label = f"{campaign.scenario.id}-{name}{'-shuffled' if shuffle else ''}"
    path = args.out / "parts" / f"{label}.jsonl"
    past = read_part(path, len(campaign.keys))
    spent = {turn["tick"]: (turn["seconds"], turn["tokens"]) for turn in past}

    opening: list[str] = []

    @cache
    def answers() -> Respond:
        return speak().respond_in(campaign, opening[0])

    def respond(prompts: Sequence[str], episodes: Sequence[int], tick: int) -> Sequence[str]:
        speaker, answer = speak(), answers()
        began = time.perf_counter()
        texts = answer(prompts, episodes, tick)
        spent[tick] = (time.perf_counter() - began, speaker.count(texts))
        return texts

    def keep(turn: Turn) -> None:
        seconds, tokens = spent.get(turn.tick, (0.0, 0))  # nothing where nobody was asked
        json_lines.append(path, {**turn._asdict(), "seconds": seconds, "tokens": tokens})
        advance(f"{label}, tick {turn.tick + 1}")

    # fmt: off
    played = play.play(
        campaign.env, campaign.params, campaign.inventory, campaign.keys, respond, layout=args.layout,
        asking=args.asking, shuffle=shuffle, opening=opening.append, advance=keep,
        past=[Turn(t["tick"], t["texts"]) for t in past],
    )
    # fmt: on
    return played, sum(seconds for seconds, _ in spent.values()), sum(tokens for _, tokens in spent.values())


# --- all of it ------------------------------------------------------------------------------------------------------


def evaluate(args: Any, advance: Callable[[str], None]) -> tuple[dict[str, list[Told]], dict[str, Any], dict[str, str]]:
    """(what each policy did on each campaign, what the models are, transcripts: title by file)."""
    dims, seed = dims_of(args.scenario, restores(args.rules)), evaluation_seed(args.seed)
    keys = rollouts.episode_keys(noise.root(seed), args.episodes)
    told: dict[str, list[Told]] = {}
    campaigns = []
    weights = {args.reward: reward.weights(args.reward)}
    for arena in make_arenas(args.scenario, args.rules, weights, args.personality):
        params = make_params(arena.scenario, dims, args.rules, args.reward, args.personality)
        campaigns.append(Campaign(arena.scenario, params, prompting.inventory(arena.scenario, dims), keys))
        for name, candidate in candidates(args, arena, advance).items():
            advance(f"{arena.scenario.id}: {name}")
            told.setdefault(name, []).append(play_candidate(campaigns[-1], name, candidate, args.shuffle))
    models: dict[str, Any] = {}
    pages: dict[str, str] = {}
    wanted = {BASE: None} if args.adapter is None else {BASE: None, TRAINED: args.adapter}
    for name, adapter in list(wanted.items())[not args.base :]:
        about, loaded = args.out / "parts" / f"{name}.json", list[Speaker]()
        speak = partial(load_once, loaded, args, adapter, about, advance)
        for campaign in campaigns:
            played, seconds, tokens = play_model(args, campaign, name, speak, advance)
            row = tell(campaign, name, played.stats, played.actions)._replace(
                reasons=Counter(p.reason for tick in played.parsed for p in tick if p is not None),
                seconds=seconds,
                tokens=tokens,
            )
            if args.shuffle and name == list(wanted)[-1]:
                again, _, _ = play_model(args, campaign, name, speak, advance, SHUFFLED)
                row = row._replace(shuffled=again.stats.episode_return)
            told.setdefault(name, []).append(row)
            if name == list(wanted)[-1]:
                advance(f"{campaign.scenario.id}: transcripts")
                same = {k: getattr(args, k) for k in ("rules", "reward", "personality", "layout", "model")}
                same |= {"seed": seed, "policy": name}
                folder = args.out / "transcripts"
                pages |= transcript_page.save(folder, campaign.scenario, dims, played, args.transcripts, same)
        models[name] = json.loads(about.read_text(encoding="utf-8"))
    return told, models, pages


def load_once(
    loaded: list[Speaker], args: Any, adapter: Path | None, about: Path, advance: Callable[[str], None]
) -> Speaker:
    """The model, loaded when something is first to be asked: what was said before needs none."""
    if not loaded:
        advance("loading the model")
        loaded.append(load(args, adapter))
        cli.write_json(about, loaded[0].about)
    return loaded[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, play, write the report."""
    args = parse_args(argv)
    given = settings(args)
    with locked(args.out), cli.progress() as advance:
        begin(args.out, given, args.restart)
        told, models, pages = evaluate(args, advance)
        advance("the report")
        made = {"command": args.command, "seed": evaluation_seed(args.seed), "models": models}
        report.write(args.out, given, made, told, pages)
    print(args.out / "report.md")

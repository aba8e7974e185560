"""How a language model fares as a defender, beside policies that play the same episodes.

    jaxsim-soc evaluate-model --model embedded --out out/base
    jaxsim-soc evaluate-model --model embedded --adapter out/run/adapter --episodes 100 --out out/trained

The report is DIR/report.md, its numbers DIR/rows.json and DIR/rows.csv. What was said is kept tick by tick: a run that
was interrupted goes on where it stopped when the same command is given again. The episodes are those of
`evaluation_seed(--seed)`, from which nothing is trained or searched.
"""

import json
import shlex
import sys
from argparse import ArgumentTypeError, BooleanOptionalAction
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import prompting
import scenarios
from grpo.model import adapters, folders, models
from grpo.model.contents import fingerprint
from grpo.model.errors import ModelError
from grpo.playing import remote, speaker
from grpo.playing.campaign import Campaign, tell
from grpo.playing.candidates import ALWAYS_THERE, SHUFFLED, candidates, play_candidate
from grpo.playing.choices import (
    ALWAYS_ASK,
    ASKING,
    BASE,
    CONSTRAINED,
    DECODINGS,
    FREE,
    MAX_EPISODES,
    OTHERS,
    TRAINED,
)
from grpo.playing.folder import begin, locked
from grpo.playing.speaker import load_once, play_model
from grpo.playing.speech import Speaker
from grpo.reporting import report, transcript_page
from grpo.reporting.measure import Told
from jaxsim import noise, one_episode, options, reward
from jaxsim.audit.arena import make_arenas
from jaxsim.compile import dims_of
from jaxsim.env import make_params
from jaxsim.rules import restores
from jaxsim.version import SIMULATOR_VERSION
from jaxsim_soc import cli

EVALUATION = 0x6576616C  # folded into the key of --seed; the search folds in 1


def evaluation_seed(seed: int) -> int:
    """The seed of the evaluation's episodes: other ones than those that training with the same --seed plays."""
    return int(jax.random.bits(jax.random.fold_in(noise.root(seed), EVALUATION), dtype=np.uint32))


# --- what to do -----------------------------------------------------------------------------------------------------


def parser() -> cli.Parser:
    """The options."""
    p, switch, whole, one_of = cli.parser(__doc__), BooleanOptionalAction, cli.integer, cli.one_of
    # fmt: off
    p.add_argument("--model", default="embedded", metavar="NAME",
                   help="embedded, a folder, a hub id, or openai:NAME behind a server")
    p.add_argument("--adapter", type=adapters.folder, metavar="DIR",
                   help="a trained adapter for that model, or default, the project's own: a row of its own")
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
    p.add_argument("--rename", action=switch, default=False,
                   help="play again where assets and identities have names that say nothing (likewise)")
    p.add_argument("--transcripts", type=whole(0), default=2, metavar="N", help="pages of each campaign (default: 2)")
    p.add_argument("--decode", type=one_of(DECODINGS), default=CONSTRAINED, metavar="NAME",
                   help="constrained (default): word by word, legal answers only; free; or exact: all legal answers "
                   "are weighed at once, and one is chosen")
    for option, name in (("--constrained", CONSTRAINED), ("--no-constrained", FREE)):
        p.add_argument(option, dest="decode", action="store_const", const=name, help=f"as --decode {name}")
    p.add_argument("--temperature", type=temperature, default=0.0, metavar="T", help="0, the default, is greedy")
    p.add_argument("--max-new-tokens", type=whole(1, 4096), default=40, metavar="N", help="default: 40")
    p.add_argument("--layout", type=one_of(prompting.LAYOUTS), default="compact", metavar="NAME",
                   help=f"of the prompts: {', '.join(prompting.LAYOUTS)} (default: compact)")
    p.add_argument("--asking", type=one_of(ASKING), default=ALWAYS_ASK, metavar="WHEN",
                   help="always (default), or on-change: MONITOR while the model's view stays the same")
    p.add_argument("--batch", type=cli.positive_int, default=32, metavar="N", help="prompts at a time (default: 32)")
    p.add_argument("--four-bit", action="store_true", help="keep the weights in 4 bits")
    p.add_argument("--dtype", type=one_of(("auto", *models.DTYPES)), default="auto", metavar="NAME",
                   help=f"of the weights: auto, {', '.join(models.DTYPES)} (default: auto)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    p.add_argument("--threads", type=cli.positive_int, metavar="N", help="of torch (default: its own choice)")
    p.add_argument("--base-url", metavar="URL", help="of the OpenAI-compatible server of openai:NAME; its key, if it "
                   f"wants one, is in {remote.KEY}")
    p.add_argument("--timeout", type=whole(1, 86_400), default=120, metavar="SECONDS",
                   help="of a request to it (default: 120)")
    p.add_argument("--retries", type=whole(0, 100), default=4, metavar="N", help="of a request (default: 4)")
    p.add_argument("--max-requests", type=cli.positive_int, metavar="N", help="to it in all; then the run stops")
    p.add_argument("--offline", action="store_true", help="ask no network for the model")
    # fmt: on
    return p


def parse_args(argv: Sequence[str] | None) -> Any:
    args = parser().parse_args(argv)
    if args.adapter is None and not args.base:
        cli.fail("--no-base without --adapter leaves no model to play; give an adapter")
    remote.check_options(args)
    if args.adapter is not None:
        check_adapter(args.adapter, args.model)
    args.scenario = options.chosen(args.scenario or [options.scenario("published")])
    args.command = shlex.join(["jaxsim-soc", "evaluate-model", *(sys.argv[1:] if argv is None else argv)])
    return args


def check_adapter(adapter: Path, model: str) -> None:
    """Fail for an adapter that could not be loaded once the model without it has played."""
    if (adapter / "adapter_config.json").is_file():
        try:
            adapters.check_adapter(adapter, model, folders.identity_of(model))
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
    names = "rules reward personality episodes seed model decode temperature layout asking max_new_tokens"
    return {
        "scenario": [s.id for s in args.scenario],
        **{name: getattr(args, name) for name in (*names.split(), "four_bit", "dtype", "device")},
        "adapter": args.adapter and str(args.adapter),
        **{f"contents of {s.id}": scenarios.digest(s) for s in args.scenario},
        "contents of the model": fingerprint(Path(args.model)),
        "base_url": args.base_url,
        "contents of the adapter": args.adapter and fingerprint(args.adapter),
        "simulator_version": SIMULATOR_VERSION,
        "format_version": prompting.FORMAT_VERSION,
    }


# --- all of it ------------------------------------------------------------------------------------------------------


def evaluate(args: Any, advance: Callable[[str], None]) -> tuple[dict[str, list[Told]], dict[str, Any], dict[str, str]]:
    """(what each policy did on each campaign, what the models are, transcripts: title by file)."""
    dims, seed = dims_of(args.scenario, restores(args.rules)), evaluation_seed(args.seed)
    keys = one_episode.episode_keys(noise.root(seed), args.episodes)
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
        load = partial(remote.load, args) if remote.is_remote(args.model) else partial(speaker.load, args, adapter)
        speak = partial(load_once, loaded, load, about, advance)
        for campaign in campaigns:
            played, seconds, tokens = play_model(args, campaign, name, speak, advance)
            row = tell(campaign, name, played.stats, played.actions)._replace(
                reasons=Counter(p.reason for tick in played.parsed for p in tick if p is not None),
                seconds=seconds,
                tokens=tokens,
            )
            last = name == list(wanted)[-1]
            if args.shuffle and last:
                again, _, _ = play_model(args, campaign, name, speak, advance, "shuffled", SHUFFLED)
                row = row._replace(shuffled=again.stats.episode_return)
            if args.rename and last:
                neutral = prompting.inventory(scenarios.renamed(campaign.scenario), dims)
                again, _, _ = play_model(args, campaign._replace(inventory=neutral), name, speak, advance, "renamed")
                row = row._replace(renamed=again.stats.episode_return)
            told.setdefault(name, []).append(row)
            if last:
                advance(f"{campaign.scenario.id}: transcripts")
                same = {k: getattr(args, k) for k in ("rules", "reward", "personality", "layout", "model")}
                same |= {"seed": seed, "policy": name}
                folder = args.out / "transcripts"
                pages |= transcript_page.save(folder, campaign.scenario, dims, played, args.transcripts, same)
        models[name] = json.loads(about.read_text(encoding="utf-8"))
    return told, models, pages


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

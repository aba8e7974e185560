"""`jaxsim-soc COMMAND`: every tool by one name. A tool is imported when it is called, and not before."""

import argparse
import os
import sys
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from jaxsim_soc import cli

NAME = "jaxsim-soc"
DRAWING = ("scipy", "matplotlib", "rich")
LANGUAGE_MODEL = ("torch", "transformers", "llguidance", *DRAWING, "safetensors")
SERVER = ("fastapi", "uvicorn", "websockets")
GROUPS = {
    "rewards": (
        "audit",
        "audit-gymnasium",
        "replay",
        "gate",
        "search-reward",
        "ablate-rules",
        "search-check",
        "planted-holes",
    ),
    "policies": ("evaluate", "train-policy", "export-soc"),
    "language models": ("train", "evaluate-model", "transcript", "export"),
    "scenarios": ("scenarios", "calibrate"),
    "other people's agents": ("serve", "reward-report"),
    "people": ("console",),
    "speed": (
        "throughput",
        "generator-speed",
        "prompting-speed",
        "credit-speed",
        "decoding-speed",
        "learning-speed",
        "serve-speed",
    ),
    "shell": ("completion",),
}


class Command(NamedTuple):
    """A tool: `main()` of a module, which also has the `parser()` of its options."""

    module: str
    help: str
    needs: tuple[str, ...] = ()  # optional packages, said to be missing before the module is imported
    extra: str = "bench"  # what installs them

    def load(self) -> Any:
        """The module, imported with JAX on the CPU where torch may want the GPU. Ends the program without `needs`."""
        for package in self.needs:
            cli.need(package, "this command", self.extra)
        if "torch" in self.needs:  # before JAX is imported, which would take 75 % of a GPU's memory
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
        return import_module(self.module)


COMMANDS = {
    "audit": Command(
        "jaxsim.audit.sweep",
        "find what a reward really pays for; with --certify a gate",
        (*DRAWING, "safetensors"),
    ),
    "audit-gymnasium": Command(
        "jaxsim.audit.outward.command",
        "whether any Gymnasium environment pays for reading",
        ("scipy", "rich", "gymnasium"),
        "bench,gym",
    ),
    "replay": Command("jaxsim.audit.replay", "play a witness of an audit tick by tick", ("rich",)),
    "gate": Command("grpo.training.audit_gate", "collect verdicts of audits, for training to consult"),
    "search-reward": Command(
        "jaxsim.audit.reward_search", "find the weights of the operational reward", (*DRAWING, "safetensors")
    ),
    "ablate-rules": Command("jaxsim.audit.ablation", "which rule mends which exploit", DRAWING),
    "search-check": Command(
        "jaxsim.audit.search_check", "the audit's search beside an exhaustive one", ("scipy", "rich")
    ),
    "planted-holes": Command("jaxsim.audit.planted", "how often the audit is wrong, on games made for it", DRAWING),
    "evaluate": Command("jaxsim.audit.evaluation", "returns of baselines, plans and learned policies (JAX)", ("rich",)),
    "train-policy": Command(
        "jaxsim.audit.policy_training",
        "train the recurrent policies that the audit plays",
        (*DRAWING, "optax", "safetensors"),
    ),
    "export-soc": Command("jaxsim.soc.command", "episodes as OCSF, STIX, Attack Flow and Navigator files", ("rich",)),
    "train": Command(
        "grpo.training.command", "train a language model by GRPO", (*LANGUAGE_MODEL, "trl", "peft"), "bench,train"
    ),
    "evaluate-model": Command(
        "grpo.playing.evaluation",
        "returns of a language model (--model) beside policies",
        LANGUAGE_MODEL,
        "bench,train",
    ),
    "transcript": Command("grpo.reporting.transcript_page", "one episode as a web page"),
    "export": Command(
        "grpo.exporting.command",
        "merge an adapter into a model folder and a GGUF file",
        (*LANGUAGE_MODEL, "peft", "gguf"),
        "bench,train",
    ),
    "scenarios": Command("scenarios.__main__", "list, begin, check, draw, generate, import, export scenarios"),
    "calibrate": Command("jaxsim.calibration", "a scenario's alerts beside labelled ones of a real network (CSV)"),
    "throughput": Command("jaxsim.throughput", "steps a second, beside the scalar twin"),
    "generator-speed": Command("jaxsim.generator_speed", "networks drawn a second"),
    "prompting-speed": Command("grpo.speed.prompting_speed", "prompts written and answers read a second"),
    "credit-speed": Command("grpo.speed.credit_speed", "futures of training rows a second"),
    "decoding-speed": Command(
        "grpo.speed.decoding_speed", "decisions of a language model a second", LANGUAGE_MODEL, "bench,train"
    ),
    "learning-speed": Command(
        "grpo.speed.learning_speed",
        "seconds and memory of a state, learned without samples",
        LANGUAGE_MODEL,
        "bench,train",
    ),
    "serve": Command("serving.serve", "the game over HTTP and WebSocket, for agents of any language", SERVER, "serve"),
    "reward-report": Command("serving.reward_report", "an audit's tests of a reward, as a hub reads them", ("scipy",)),
    "console": Command("serving.console", "the game in a browser: play, watch, replay, compare", SERVER, "serve"),
    "serve-speed": Command("serving.load", "ticks a second of a server, and how long a client waits", SERVER, "serve"),
    "completion": Command("jaxsim_soc.completion", "print the completion of a shell", ("shtab",)),
}


def run(name: str) -> NoReturn:
    """Run a tool on the words in `sys.argv`, and exit."""
    cli.run(lambda: COMMANDS[name].load().main())


def main() -> NoReturn:
    """The front door: the first word says which tool."""
    first, *words = meant(sys.argv[1:] or [""])
    if first in COMMANDS:
        sys.argv = [f"{NAME} {first}", *words]
        run(first)
    sys.argv[0] = NAME
    cli.run(lambda: run(parser().parse_args().command))  # help, the version, or what is wrong with the word


def meant(words: list[str]) -> list[str]:
    """The words, where an option belongs to a tool beside the one that was named: `audit --gymnasium ID`."""
    first, *rest = words
    options = {word.partition("=")[0] for word in rest}
    if first == "audit" and "--gymnasium" in options:
        return ["audit-gymnasium", *(x.removeprefix("--gymnasium=") for x in rest if x != "--gymnasium")]
    if first == "evaluate" and "--model" in options:
        return ["evaluate-model", *rest]
    return words


def parser() -> cli.Parser:
    """What `jaxsim-soc --help` shows."""
    listing = [
        f"{group}:\n" + "\n".join(f"  {name:<16} {COMMANDS[name].help}" for name in names)
        for group, names in GROUPS.items()
    ]
    p = cli.parser(
        "Enterprise attack chains in JAX, and the audit that finds what a SOC reward really pays for.\n\n"
        + "\n\n".join(listing)
        + f"\n\n{NAME} COMMAND --help shows the options of a command."
    )
    p.usage = f"{NAME} [-h] [--version] COMMAND ..."
    p.add_argument("command", type=cli.one_of(COMMANDS), metavar="COMMAND", help=argparse.SUPPRESS)
    return p

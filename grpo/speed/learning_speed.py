"""How long a step of learning without samples takes, and how much memory: all legal answers of every state, weighed.

    jaxsim-soc learning-speed                                                the embedded model, on what is at hand
    jaxsim-soc learning-speed --teacher                                      a warm start's step instead of GRPO's
    jaxsim-soc learning-speed --model qwen2.5-1.5b --dtype float16 --checkpointing --at-once 1 4

A pass is that of `--estimator exact`: the prompt and the tree of its legal answers, or of those that a teacher would
give, forward and backward, through an adapter (LoRA) on frozen weights. A shape, such as qwen2.5-1.5b, has the
published sizes and random weights, which cost the same; its prompts are cut by the embedded model's tokenizer. Loading
is not timed, nor is the first pass.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from grpo.rows import rows
from jaxsim_soc import cli

SHAPES: dict[str, dict[str, Any]] = {
    # Qwen2.5-1.5B-Instruct's config.json
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
    },
}  # fmt: skip
CAMPAIGN, RULES, REWARD = "supply_chain_token_drift", "hardened", "operational"


def load(name: str, dtype: str, rank: int) -> tuple[Any, Any]:
    """(a model with an adapter to train, tokenizer): a model, or one of a shape."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from grpo.learning.student import Lora, adapted, student
    from grpo.model import models

    lora = Lora(rank, 2 * rank, 0.0)
    if name not in SHAPES:
        return student(name, lora, 0, dtype=dtype)
    tokenizer = models.load().tokenizer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number = getattr(torch, "float32" if dtype == "auto" else dtype)
    torch.manual_seed(0)
    with torch.device(device):
        config = Qwen2Config(**SHAPES[name], tie_word_embeddings=True)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config, dtype=number, attn_implementation="sdpa")
    return adapted(model, lora, 0), tokenizer


def measure(
    model: Any, tasks: Sequence[Any], loss: Callable[[Sequence[Any]], Any], at_once: int, repeats: int
) -> dict[str, Any]:
    """Forward and backward through all tasks, `at_once` in a pass; each has a prompt and a tree."""
    import torch

    from grpo.learning import sharing

    gpu = model.device.type == "cuda"

    def step() -> None:
        for i in range(0, len(tasks), at_once):
            with sharing.in_half(model):
                paid = loss(tasks[i : i + at_once])
            paid.backward()
        if gpu:
            torch.cuda.synchronize()
        model.zero_grad()

    step()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    walls = []
    for _ in range(repeats):
        before = time.perf_counter()
        step()
        walls.append(time.perf_counter() - before)
    tokens = float(np.mean([len(t.prompt) + len(t.tree.tokens) for t in tasks]))
    wall = float(np.median(walls)) / len(tasks)
    # Two operations a weight and token forward, as many for the gradient of activations; frozen weights need none.
    operations = 4 * model.num_parameters() * tokens
    return {
        "at_once": at_once,
        "seconds_a_state": wall,
        "tokens_a_state": tokens,
        "operations_a_state": operations,
        "operations_a_second": operations / wall,
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
    }


def of_grpo(model: Any, part: Sequence[Any]) -> Any:
    """GRPO's loss, of any rewards."""
    import torch

    from grpo.learning import losses
    from grpo.model import trie

    found = trie.log_probs(model, [t.prompt for t in part], [t.tree for t in part])
    paid = [torch.linspace(0, 1, len(x), device=x.device) for x in found]
    return torch.stack([losses.expected_gradient(x, r, 0.0) for x, r in zip(found, paid, strict=True)]).sum()


def parser() -> cli.Parser:
    """The options."""
    p = cli.parser(__doc__)
    p.add_argument("--model", default="embedded", metavar="NAME", help=f"as for train, or {', '.join(SHAPES)}")
    p.add_argument("--dtype", type=cli.one_of(("auto", "float32", "bfloat16", "float16")), default="auto",
                   metavar="NAME", help="of the frozen weights: auto, float32, bfloat16, float16")  # fmt: skip
    p.add_argument("--rank", type=cli.positive_int, default=16, metavar="R", help="of the adapter (default: 16)")
    p.add_argument("--teacher", action="store_true", help="what the project's teacher gives, instead of GRPO's step")
    p.add_argument("--checkpointing", action="store_true", help="keep no activations")
    p.add_argument("--at-once", type=cli.positive_int, nargs="+", default=[1, 4], metavar="N", help="states a pass")
    p.add_argument("--states", type=cli.positive_int, default=8, metavar="N", help="of a step (default: 8)")
    p.add_argument("--repeats", type=cli.positive_int, default=3, metavar="N", help="timed steps (default: 3)")
    p.add_argument("--json", type=cli.output_path, metavar="FILE", help="a JSON line for each --at-once")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Load, measure, print."""
    args = parser().parse_args(argv)
    if (most := max(args.at_once)) > args.states:  # what a pass of fewer states takes would be said of so many
        cli.fail(f"--at-once {most} is more than the {args.states} --states of a step; give as many, or fewer at once")
    import torch

    from grpo.learning import exact, warm
    from jaxsim.audit import checkpoint
    from jaxsim.recurrent import MEMORYLESS

    model, tokenizer = load(args.model, args.dtype, args.rank)
    game = rows.campaigns((CAMPAIGN,), RULES, REWARD)
    bank = rows.from_teacher(game, rows.TEACHER, args.states, 0)
    prompts = rows.prompts_of(game, bank, "compact")
    tasks: Sequence[Any] = [exact.asked(tokenizer, game.inventories[0], text) for text in prompts]
    loss = partial(of_grpo, model)
    if args.teacher:
        teacher = rows.teacher_of(game, checkpoint.own(RULES, REWARD, MEMORYLESS))
        chances = rows.chances(game, bank, teacher[1])
        tasks = warm.lessons_of(game, bank, prompts, chances, np.arange(args.states), tokenizer).lessons
        tasks = sorted(tasks, key=lambda t: len(t.prompt) + len(t.tree.tokens))
        loss = partial(warm.distil_loss, model)
    gpu = model.device.type == "cuda"
    about = {
        "model": args.model, "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "learns": "teacher" if args.teacher else "grpo", "checkpointing": args.checkpointing,
        "parameters": model.num_parameters(), "trained": model.num_parameters(only_trainable=True),
        "states": len(tasks),
        "device": torch.cuda.get_device_name() if gpu else "cpu", "threads": torch.get_num_threads(),
    }  # fmt: skip
    model.train()
    lines = []
    with exact.checkpointing(model, args.checkpointing):
        for at_once in args.at_once:
            lines.append(json.dumps(about | measure(model, tasks, loss, at_once, args.repeats)))
            print(lines[-1], flush=True)
    if args.json:
        cli.write_text(args.json, "\n".join(lines) + "\n")

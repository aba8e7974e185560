"""GRPO proper, on TRL's GRPOTrainer.

Departures from its defaults, all of them: the reward is looked up (return-to-go of the action at the row's state),
the trainable weights are recast to float32 after construction, because TRL makes them bfloat16, which a T4 lacks;
a checkpoint counts only when a marker says that it was written to its end; and a loss or weight that is no number ends
the training, where the trainer would log an average in its place.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo.learning import diagnostics, finite, sharing, signals
from grpo.learning.diagnostics import Tables
from grpo.learning.plan import Plan
from grpo.model.errors import ModelError
from grpo.rows.rows import chat_of
from jaxsim_soc import write

# Of the trainer's own use of transformers, nothing that a user could change.
_SAID = (".*gradient_checkpointing.* is deprecated", "Unable to fetch remote file", "Could not find a config file")
for _said in _SAID:
    warnings.filterwarnings("ignore", message=_said)

WHOLE = "whole.json"  # the marker


class Book:
    """The reports of a run's steps: what the reward function saw, joined with what the trainer logged."""

    def __init__(self, known: Tables, weights: dict[str, float]):
        self.known, self.weights = known, weights
        self.__name__ = "reward"  # the trainer logs it under this name
        self.pending: list[tuple[int, str]] = []
        self.recent: list[dict[str, Any]] = []

    def __call__(self, completions: list[Any], row: list[int], **_: Any) -> list[float]:
        """The trainer's reward function: one number a completion. Groups are runs of equal rows.

        Of several processes each sees the completions of all, since a group may be spread over them.
        """
        mine = [(int(r), c[0]["content"] if isinstance(c, list) else c) for r, c in zip(row, completions, strict=True)]
        everyone: list[tuple[int, str]] = gather_object(mine)
        row, texts = [r for r, _ in everyone], [text for _, text in everyone]
        order = {r: i for i, r in enumerate(dict.fromkeys(row))}
        made = [diagnostics.completion(self.known, r, order[r], text) for r, text in zip(row, texts, strict=True)]
        batch, parsed = [m[0] for m in made], [m[1] for m in made]
        totals = signals.total(batch, self.weights)
        finite.check_number(sum(totals), "GRPO: the reward")  # the trainer would take NaN for 0
        self.latest = diagnostics.step_report(self.known, row, batch, parsed, totals)
        self.latest["signals"] = {
            name: sum(v) / len(v) for name, v in signals.values(batch, list(self.weights)).items()
        }
        first = PartialState().process_index * len(mine)
        return totals[first : first + len(mine)]


class Follow(TrainerCallback):
    """After each step: check its numbers, write its report, sound the alarm, mark checkpoints that are whole."""

    def __init__(self, book: Book, log: Callable[[int, dict[str, Any]], None], armed: bool):
        self.book, self.log, self.armed, self.alarm = book, log, armed, ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step's luck comes from seed, step and process: the trainer, resuming, would draw other completions."""
        set_seed((args.seed * 1_000_003 + state.global_step + 7919 * args.process_index) % 2**32)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Before anything is logged or saved."""
        finite.check_weights(model, f"GRPO, step {state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Join the trainer's numbers with ours."""
        if not logs or "loss" not in logs:
            return
        finite.check_number(logs["loss"], f"GRPO, step {state.global_step}: the loss")
        kept = ("loss", "grad_norm", "learning_rate", "kl", "entropy", "completions/mean_length")
        report = {**self.book.latest, **{k: logs[k] for k in kept if k in logs}}
        self.book.recent.append(report)
        self.log(state.global_step, report)
        if self.armed and (reason := diagnostics.alarm(self.book.recent)):
            self.alarm = reason
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The checkpoint has been written to its end."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        recent = json.dumps({"recent": self.book.recent[-diagnostics.WINDOW :]})
        write.whole(folder / WHOLE, lambda file: file.write(recent.encode()))


def last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [p.parent for p in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)


def optimise(
    model: Any,
    tokenizer: Any,
    known: Tables,
    rows: Sequence[int],
    plan: Plan,
    folder: Path,
    seed: int,
    log: Callable[[int, dict[str, Any]], None],
) -> str:
    """Train the adapter of `model` in place on the given rows; returns the alarm's reason, or ''.

    Continues from the newest whole checkpoint in `folder`. Raises ModelError when numbers are lost, or when fewer steps
    were taken than asked for and no alarm says why.
    """
    args = config(model, plan, folder, seed)
    book = Book(known, plan.weights)
    follow = Follow(book, log, plan.alarm)
    trainer = _trainer(model, tokenizer, prompts(known, rows), book, follow, args)
    last = last_whole(folder)
    if last:
        _restore(trainer, book, last)
        if plan.alarm and (reason := diagnostics.alarm(book.recent)):  # it had ended there
            return reason
    try:
        with sharing.share(model), sharing.in_half(model):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ModelError(f"GRPO: the model's probabilities are no numbers; {finite.REMEDY}") from error
    taken = trainer.state.global_step
    if taken < plan.steps and not follow.alarm:
        raise ModelError(f"GRPO took {taken} of {plan.steps} steps on {len(rows)} rows; give it more rows")
    return follow.alarm


def config(model: Any, plan: Plan, folder: Path, seed: int) -> GRPOConfig:
    """The trainer's own settings."""
    on_gpu = model.device.type == "cuda"
    half = next(p for p in model.parameters() if not p.requires_grad).dtype
    each = plan.prompts_per_step * plan.group // PartialState().num_processes
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=each // plan.micro_batch,
        num_generations=plan.group,
        max_completion_length=plan.max_completion,
        temperature=plan.temperature,
        learning_rate=plan.lr,
        beta=plan.beta,
        loss_type="grpo",
        scale_rewards=plan.scale_rewards,
        # On a GPU the trainer's autocast follows the weights; on a CPU the weights are what they are.
        bf16=on_gpu and half == torch.bfloat16,
        fp16=on_gpu and half == torch.float16,
        cast_lm_head_to_fp32=half == torch.float16,
        use_cpu=not on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=plan.save_every,
        save_total_limit=2,
        report_to=plan.log_to,
        seed=seed,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        shuffle_dataset=True,
        gradient_checkpointing=plan.gradient_checkpointing,  # on by default
    )


def prompts(known: Tables, rows: Sequence[int]) -> Dataset:
    """The chats of rows, each with the row's number, by which its reward is looked up."""
    return Dataset.from_list([{"prompt": chat_of(known.game, known.rows, r), "row": int(r)} for r in rows])


def _trainer(model: Any, tokenizer: Any, data: Dataset, book: Book, follow: Follow, args: GRPOConfig) -> Any:
    reward_funcs: list[Any] = [book]
    trainer: Any = GRPOTrainer(
        model=model,
        reward_funcs=reward_funcs,
        args=args,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[follow],
    )
    trainer.remove_callback(PrinterCallback)
    for p in trainer.model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return trainer


def _restore(trainer: Any, book: Book, checkpoint: Path) -> None:
    """Put back what the trainer would not: the alarm's memory, and the adapter."""
    book.recent = json.loads((checkpoint / WHOLE).read_text())["recent"]
    # Of two adapters (the other is TRL's reference) transformers 5.17 would not restore the one that is trained.
    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))

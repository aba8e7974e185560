"""What a training run is made of: presets in files, every field overridable on the command line."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

import scenarios
from grpo.learning import signals
from grpo.learning.plan import Plan
from grpo.model import adapters
from grpo.playing.choices import ASKING, MAX_EPISODES, OTHERS
from jaxsim import rules as rule_sets
from jaxsim.recurrent import MEMORYLESS
from jaxsim.reward import PRESETS as REWARDS
from prompting import LAYOUTS
from scenarios.read import Unreadable, file_text, odd, read, report
from scenarios.wording import show

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent.parent / "presets").glob("*.yaml"))}
MAX_SEED = 2**31 - 1
OWN = "own"  # the memoryless policy that comes with the project, as a teacher
CHECKED = 64  # rows of each loop, at most, that nothing is trained on, for its shuffle drop
# What a run may be continued with: nothing that was trained depends on it.
MAY_CHANGE = ("evaluate_episodes", "evaluate_policies", "evaluate_shuffle", "evaluate_beside", "log_to")


class SettingsError(ValueError):
    """A setting that cannot be; the message names preset or option, field, value and remedy."""


class Collection(NamedTuple):
    """What collecting rows needs of the settings, by their names."""

    rows: int
    warm_rows: int
    futures: int
    least_z: float
    layout: str
    critic_rounds: int
    critic_states: int
    eta: float
    taught: int
    collect_episodes: int
    temperature: float
    asking: str
    max_completion: int
    decode: str
    seed: int


class Settings(BaseModel):
    """One training run. Units and meaning stand beside each field; `--help` shows them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # The model
    model: str = Field("embedded", description="embedded, a local folder, or a hub id")
    adapter: str = Field(
        "",
        description="to begin from: a folder, or default, the one that comes with the project; rank, scale and dropout "
        "are its own then, and every loop is of the model's own play (default: a fresh one)",
    )
    backend: Literal["auto", "transformers", "unsloth"] = Field(
        "auto", description="auto: unsloth on CUDA if installed"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the frozen weights")
    four_bit: bool = Field(False, description="NF4 quantisation of the frozen weights (QLoRA)")
    lora_r: int = Field(16, ge=1, le=512, description="rank of the adapter")
    lora_alpha: int = Field(32, ge=1, le=2048, description="scale of the adapter")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="dropout of the adapter")
    gradient_checkpointing: bool = Field(False, description="less memory, slower")
    # The game
    scenarios: tuple[str, ...] = Field((), description="training campaigns (default: the published ones not held out)")
    rules: str = Field("hardened", description="rules, as for the audit")
    reward: str = Field("operational", description="reward, as for the audit")
    layout: str = Field("compact", description="of the prompts")
    # Rows
    outer_loops: int = Field(
        1, ge=1, le=20, description="rounds of collection and GRPO: the first on the teacher's states, then own play"
    )
    collect_episodes: int = Field(32, ge=2, le=4096, description="episodes per campaign of a collection")
    temperature: float = Field(1.4, gt=0, le=5, description="of the model's own play, and of GRPO's completions")
    asking: str = Field("always", description="always: the model decides each tick; on-change: when its view changed")
    rows: int = Field(1500, ge=4, le=100_000, description="states per outer loop, at most")
    successor: Literal["student", "evidence", "learned", "waiting"] = Field(
        "student",
        description="who plays on in the futures: student, a stand-in fitted to the model's own probabilities; "
        "evidence, a scripted policy; learned, the teacher; waiting, nobody",
    )
    futures: int = Field(64, ge=2, le=4096, description="K, simulated futures per legal action")
    credit: Literal["forks", "critic"] = Field(
        "forks",
        description="of actions: forks, their return-to-go from the row's very state; critic, what the view says of "
        "them, after rounds of policy iteration from the model's stand-in",
    )
    critic_rounds: int = Field(5, ge=1, le=100, description="of policy iteration, for credit critic")
    critic_states: int = Field(4000, ge=8, le=1_000_000, description="that each round's critic is fitted in, about")
    least_z: float = Field(
        2.5, ge=0, le=10, description="rows whose actions differ by less are skipped, standard errors"
    )
    # Warm start
    warm_rows: int = Field(0, ge=0, le=100_000, description="states of a supervised warm start; 0: none")
    warm_loops: int = Field(
        1, ge=1, le=20, description="outer loops that begin with one, the first; GRPO begins in the last of them"
    )
    teacher: str = Field(
        "",
        description=f"{OWN}, the project's, or a file of train-policy --view memoryless: states of loop 0 are of its "
        "play, and a warm start teaches its probabilities of all legal actions (default: a heuristic's play and "
        "answers)",
    )
    warm_sharpness: float = Field(
        1.0,
        gt=0,
        le=20,
        description="power that the teacher's probabilities are raised to: above 1, its likeliest "
        "action stands out more",
    )
    warm_acting: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least share of a warm start's states in which the teacher would rather act than "
        "wait or look, as far as there are such",
    )
    warm_epochs: int = Field(2, ge=1, le=20, description="passes over them")
    warm_lr: float = Field(5e-4, gt=0, le=1, description="learning rate of the warm start")
    warm_batch: int = Field(8, ge=1, le=1024, description="rows per step of the warm start")
    # GRPO
    profile: str = Field("returns", description=f"reward profile: {', '.join(signals.PROFILES)}")
    estimator: Literal["sampled", "exact"] = Field(
        "sampled", description="of the gradient: sampled, completions by TRL; exact, all legal answers at once"
    )
    objective: Literal["gradient", "target"] = Field(
        "gradient",
        description="of estimator exact: gradient, GRPO's in the limit of a group without end; target, cross-entropy "
        "to chances x exp(advantage / eta)",
    )
    eta: float = Field(0.5, gt=0, le=100, description="of objective target: smaller is greedier")
    scale_rewards: Literal["group", "none"] = Field(
        "group", description="advantages in standard deviations of a group, or none: in points"
    )
    entropy_weight: float = Field(0.0, ge=0, le=10, description="of estimator exact: pay for entropy, points a nat")
    signals: dict[str, float] = Field(default_factory=dict, description="weights that replace the profile, as JSON")
    steps: int = Field(60, ge=0, le=1_000_000, description="optimizer steps per outer loop")
    prompts_per_step: int = Field(1, ge=1, le=4096, description="rows per step")
    group: int = Field(8, ge=2, le=256, description="G, completions per row")
    micro_batch: int = Field(8, ge=1, le=4096, description="completions per forward pass")
    lr: float = Field(3e-5, gt=0, le=1, description="learning rate")
    beta: float = Field(0.04, ge=0, le=10, description="weight of the KL term, which objective target has not")
    decode: Literal["free", "constrained", "exact"] = Field(
        "free", description="how the model answers in its own play and when it is evaluated, as for evaluate-model"
    )
    max_completion: int = Field(40, ge=8, le=1024, description="tokens of a completion, at most")
    alarm: bool = Field(True, description="stop when the policy shows the tells of a shortcut")
    # The run
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of all the luck")
    validate_episodes: int = Field(
        0,
        ge=0,
        le=MAX_EPISODES,
        description="episodes per campaign played after each loop: the adapter of the best loop is kept; 0: the last",
    )
    save_every: int = Field(5, ge=1, le=100_000, description="steps between checkpoints")
    evaluate_episodes: int = Field(32, ge=2, le=MAX_EPISODES, description="episodes per campaign and policy at the end")
    evaluate_policies: tuple[str, ...] = Field(OTHERS, description="rows beside monitor, random, base and trained")
    evaluate_shuffle: bool = Field(True, description="play again on another episode's evidence")
    evaluate_beside: bool = Field(
        False,
        description="evaluate the base in a process of its own while training: for CPUs, whose cores gain little "
        "from sharing one task",
    )
    log_to: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        "none", description="a tracker beside the log file"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1."""
        held = value.values() if isinstance(value, Mapping) else (value,)
        if any(isinstance(x, bool) for x in held) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are no numbers; write one, such as 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        for field, value, known in (
            ("layout", self.layout, LAYOUTS),
            ("asking", self.asking, ASKING),
            ("reward", self.reward, REWARDS),
            ("profile", self.profile, signals.PROFILES),
        ):
            if value not in known:
                raise ValueError(f"{field} = {value!r} is unknown; choose one of {', '.join(known)}")
        rule_sets.rules(self.rules)
        for name in self.signals:
            if name not in signals.SIGNALS:
                raise ValueError(f"signals: {name!r} is unknown; choose among {', '.join(signals.SIGNALS)}")
        for name in self.evaluate_policies:
            if name not in OTHERS:
                near = get_close_matches(name, OTHERS, 1)
                hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(OTHERS)}"
                raise ValueError(f"evaluate_policies: {name!r} is unknown; {hint}")
        ids: dict[str, str] = {}
        for name in self.scenarios:
            one = scenarios.load(name)
            if one.held_out:
                raise ValueError(f"scenarios: {name!r} is held out and never trained on; leave it out")
            if one.id in ids:
                raise ValueError(
                    f"scenarios: {ids[one.id]!r} and {name!r} both have the id {one.id!r}; "
                    "leave one out, or change `id` in one of the files"
                )
            ids[one.id] = name
        if self.prompts_per_step * self.group % self.micro_batch:
            raise ValueError(
                f"micro_batch = {self.micro_batch} does not divide prompts_per_step x group = "
                f"{self.prompts_per_step * self.group}; choose one that does"
            )
        most = self.rows if self.outer_loops > 1 else max(self.rows, self.warm_rows)
        if self.steps and self.prompts_per_step > most - kept_apart(most):
            raise ValueError(
                f"prompts_per_step = {self.prompts_per_step} is more than there are: {kept_apart(most)} of a loop's "
                f"{most} rows are kept for checking; choose fewer, or more rows"
            )
        if self.teacher_file and not self.teacher_file.is_file():
            what = f"{self.teacher!r} is no file"
            if self.teacher == OWN:
                what = f"{OWN}: none comes with the project for rules {self.rules!r} and reward {self.reward!r}"
            raise ValueError(f"teacher = {what}; give one of jaxsim-soc train-policy --view memoryless")
        for name, number, usual in (
            ("warm_sharpness", self.warm_sharpness, 1.0),
            ("warm_acting", self.warm_acting, 0.0),
        ):
            if number != usual and not self.teacher:
                raise ValueError(f"{name} = {number:g} is of a teacher, and there is none; give teacher, or {usual:g}")
        if self.warm_loops > self.outer_loops:
            raise ValueError(
                f"warm_loops = {self.warm_loops} is more than outer_loops = {self.outer_loops}; choose as many or fewer"
            )
        if self.warm_loops > 1 and not self.warm_rows:
            raise ValueError(
                f"warm_loops = {self.warm_loops} and warm_rows = 0: the first loops would learn nothing; give "
                "warm_rows, or warm_loops 1"
            )
        if self.validate_episodes == 1:
            raise ValueError("validate_episodes = 1: of one episode there is no standard error; give 2 or more, or 0")
        if self.successor == "learned" and not self.teacher:
            raise ValueError("successor = learned is the teacher, and there is none; give teacher, or take student")
        if self.credit == "critic":
            if not self.steps:
                raise ValueError("credit = critic and steps = 0: nothing would be taught by it; give steps, or forks")
            for name, has, needs in (
                ("successor", self.successor, "student"),
                ("estimator", self.estimator, "exact"),
                ("objective", self.objective, "target"),
                ("scale_rewards", self.scale_rewards, "none"),
            ):
                if has != needs:
                    raise ValueError(
                        f"credit = critic improves the model's stand-in by steps of exp(points / eta), and {name} = "
                        f"{has!r}; take {name} = {needs}, or credit = forks"
                    )
        if self.warm_loops > 1 and not self.teacher:
            raise ValueError(
                f"warm_loops = {self.warm_loops}, but a heuristic has no answer to most states of the model's play; "
                "give teacher, or warm_loops 1"
            )
        if self.adapter and self.warm_rows and not self.teacher:
            raise ValueError(
                f"adapter = {self.adapter!r} plays itself, but a heuristic has no answer to most states of the model's "
                "play; give teacher, or warm_rows 0"
            )
        if self.adapter_folder and not self.adapter_folder.is_dir():
            raise ValueError(f"adapter = {self.adapter!r} is no folder; give one that an adapter was saved to")
        if self.estimator == "exact" and self.backend == "unsloth":
            raise ValueError("estimator = exact does not go through Unsloth; take backend = transformers, or sampled")
        if spread := [name for name in signals.SPREAD if self.weights.get(name) and self.estimator == "exact"]:
            raise ValueError(
                f"signals: {spread[0]} compares the completions of a group, and estimator = exact draws none; leave it "
                "out, or take sampled"
            )
        if self.four_bit and self.dtype == "float32":
            raise ValueError("four_bit and dtype = float32 contradict each other; use bfloat16, float16 or auto")
        if not self.steps and self.outer_loops > self.warm_loops:
            raise ValueError(
                f"steps = 0 and outer_loops = {self.outer_loops}: the last loops would learn nothing; give steps, or "
                f"as many outer_loops as warm_loops = {self.warm_loops}"
            )
        if not self.warm_rows and not self.steps:
            raise ValueError("warm_rows = 0 and no GRPO step: nothing would be trained; give warm_rows or steps")
        return self

    @property
    def campaigns(self) -> tuple[str, ...]:
        """The training campaigns."""
        return self.scenarios or tuple(n for n in scenarios.names() if not scenarios.load(n).held_out)

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter to begin from is, if there is one."""
        return adapters.place(self.adapter) if self.adapter else None

    @property
    def teacher_file(self) -> Path | None:
        """Where the teacher is, if there is one."""
        if self.teacher != OWN:
            return Path(self.teacher) if self.teacher else None
        from jaxsim.audit import checkpoint  # safetensors, which no command line should wait for

        return checkpoint.own(self.rules, self.reward, MEMORYLESS)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward signal."""
        return self.signals or dict(signals.PROFILES[self.profile])

    @property
    def not_covered(self) -> list[str]:
        """What GRPO pays for that an audit of the reward says nothing about, in words."""
        return signals.beside_the_return(self.weights) if self.steps else []

    @property
    def taught(self) -> int:
        """How many rows a loop's GRPO steps ask for."""
        return self.steps * self.prompts_per_step

    @property
    def collection(self) -> Collection:
        """What collecting rows needs of these."""
        return Collection(**{name: getattr(self, name) for name in Collection._fields})

    @property
    def plan(self) -> Plan:
        """What GRPO needs of these."""
        return Plan(**{name: getattr(self, name) for name in Plan._fields})


def kept_apart(rows: int) -> int:
    """How many of a loop's rows nothing is trained on."""
    return min(CHECKED, max(2, rows // 8))


def load(preset: str, changes: dict[str, Any] | None = None) -> Settings:
    """The settings of a preset (a name, or the path of a YAML file) with `changes` on top. Raises SettingsError."""
    path, given = _preset(preset)
    try:
        return Settings(**{**given, **(changes or {})})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = f"no such setting; choose among {', '.join(Settings.model_fields)}"
        value = f" = {first['input']!r:.60}" if field else ""
        raise SettingsError(f"{path.name}: {field}{value}{': ' if field else ''}{what}") from None
    except scenarios.ScenarioError as error:
        raise SettingsError(f"{path.name}: scenarios: {error.problems[0]}") from None


def _preset(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a preset, and what it sets: strictly read, as a scenario file is."""
    if name not in PRESETS and not os.path.lexists(name):
        raise SettingsError(f"--preset {show(name)} is neither a preset nor a file; choose one of {', '.join(PRESETS)}")
    path = PRESETS.get(name) or Path(name)
    try:
        tree = read(file_text(str(path), "preset"), path.suffix.lower() == ".json", "preset")
    except Unreadable as error:
        raise SettingsError(f"--preset: {error}") from None
    if problems := report(tree.problems or odd(tree.data), tree, str(path)):
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SettingsError(problems[0] + rest)
    if not isinstance(tree.data, dict):
        raise SettingsError(f"{path}: a preset is a mapping of settings; got {type(tree.data).__name__}")
    return path, tree.data

"""How GRPO is to learn: numbers as plain data, so that another process can be given them as well."""

from typing import NamedTuple


class Plan(NamedTuple):
    """What `optimise` needs to know, whoever runs it."""

    steps: int  # optimizer steps
    prompts_per_step: int
    group: int  # completions of a prompt
    micro_batch: int  # completions of a forward pass
    max_completion: int  # tokens
    temperature: float  # of the completions
    lr: float
    beta: float  # weight of the KL term
    weights: dict[str, float]  # of the reward signals
    save_every: int  # steps
    log_to: str  # "none" or a tracker that the trainer knows
    gradient_checkpointing: bool
    alarm: bool  # stop at the tells of a shortcut
    scale_rewards: str = "group"  # advantages in standard deviations of a group, or "none": in points
    # Without samples only, see `exact`
    objective: str = "gradient"  # or "target"
    eta: float = 0.5  # of a target policy: advantage for a factor of e
    entropy_weight: float = 0.0  # of the entropy of the legal answers, nats

"""What the tests of training share."""

from typing import Any

from grpo.learning import student as students
from grpo.training import settings

CAMPAIGN = "supply_chain_token_drift"


def fresh(chosen: settings.Settings) -> tuple[Any, Any]:
    lora = students.Lora(chosen.lora_r, chosen.lora_alpha, chosen.lora_dropout)
    return students.student(chosen.model, lora, chosen.seed, four_bit=chosen.four_bit, dtype=chosen.dtype)


class Killed(Exception):
    pass

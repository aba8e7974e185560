"""A scenario ready to play, and the row of what was done in it."""

from typing import Any, NamedTuple

import jax
import numpy as np

import prompting
import scenarios
from grpo.reporting import measure
from grpo.reporting.measure import Told
from jaxsim import Env
from jaxsim.types import Params


class Campaign(NamedTuple):
    """One scenario, ready to play."""

    scenario: scenarios.Scenario
    params: Params
    inventory: prompting.Inventory
    keys: jax.Array  # (E,) of its episodes

    @property
    def env(self) -> Env:
        return Env(self.inventory.dims)


def tell(campaign: Campaign, name: str, stats: Any, actions: np.ndarray) -> Told:
    """What a row is measured from."""
    return measure.tell(campaign.inventory, campaign.params, campaign.keys, name, campaign.scenario.id, stats, actions)

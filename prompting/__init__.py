"""The bridge between the simulator and a language model: observation -> text, completion -> action.

Needs neither torch nor a `State`: all it reads is an `Observation`, so hidden truth cannot get into a prompt. The
texts are a format with a version of its own, described in `prompting/FORMAT.md`.

    >>> import jaxsim, prompting
    >>> scenario = jaxsim.load_scenario("supply_chain_token_drift")
    >>> inventory = prompting.inventory(scenario)
    >>> action = jaxsim.parse_action("ISOLATE_ASSET ci-runner-01", scenario, inventory.dims)
    >>> prompting.encode(action, inventory)
    '{"action": "ISOLATE_ASSET", "target": "ci-runner-01"}'
    >>> prompting.parse('Sure! {"action": "MONITOR"} is best.', inventory)
    Parsed(action=0, reason='')
"""

from prompting.inventory import Inventory, inventory
from prompting.parse import FALLBACKS, REASONS, Parsed, answers, encode, parse
from prompting.render import LAYOUTS, render
from prompting.schema import schema
from prompting.system import FORMAT_VERSION, chat, system_prompt

__all__ = [
    "FALLBACKS",
    "FORMAT_VERSION",
    "LAYOUTS",
    "REASONS",
    "Inventory",
    "Parsed",
    "answers",
    "chat",
    "encode",
    "inventory",
    "parse",
    "render",
    "schema",
    "system_prompt",
]

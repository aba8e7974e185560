"""The system prompt, and the messages of a chat."""

from jaxsim import check
from prompting.inventory import Inventory

FORMAT_VERSION = "3"  # of everything that `prompting` writes and reads; changes when a text or its meaning does

# Where there is RESTORE, after what is said of PATCH_ASSET.
LIFECYCLE = """ While isolated it may also be rebuilt: no longer compromised.
RESTORE an asset or identity: lifts isolation, egress block and revocation. The attack can use it again."""


def system_prompt(inventory: Inventory) -> str:
    """The system message: the same for every scenario, but it speaks of RESTORE where `inventory` has it.

    Each sentence is true under all rules and rewards with these verbs. Raises ValueError for what is no inventory.
    """
    check.kind("inventory", inventory, Inventory, "that of prompting.inventory")
    until, more = ("RESTORE", LIFECYCLE) if inventory.dims.restore else ("the end", "")
    return f"""You are a SOC analyst. Each tick (30 minutes) you see the network and answer with one action.
MONITOR: wait. Free.
INVESTIGATE an asset or identity: forensics next tick, sometimes wrong. May have a price.
ISOLATE_ASSET or REVOKE_IDENTITY: cut it off. Stops attack stages on it, costs its value every tick until {until}.
BLOCK_EGRESS of an asset: stops data leaving through it, at less cost.
PATCH_ASSET: attacks on it fail more often.{more}
Many alerts are false, and there may be no attack. Contain only what alerts and forensics point to. Stop data theft.
Answer with JSON only: {{"action": "MONITOR"}} or {{"action": "INVESTIGATE", "target": "NAME"}}"""


def chat(user: str, inventory: Inventory, examples: tuple[tuple[str, str], ...] = ()) -> list[dict[str, str]]:
    """The messages of one decision, in the roles of a chat template. `examples` are turns shown before it.

    Raises ValueError for a `user` that is no text, what is no inventory, and examples that are no pairs of texts.
    """
    check.kind("user", user, str, "the text of prompting.render")
    if not all(isinstance(x, tuple | list) and len(x) == 2 and all(isinstance(y, str) for y in x) for x in examples):
        raise ValueError(f"examples = {check.said(examples)} are no turns; give pairs of texts, (shown, answer)")
    turns = [
        message
        for shown, answer in examples
        for message in ({"role": "user", "content": shown}, {"role": "assistant", "content": answer})
    ]
    return [{"role": "system", "content": system_prompt(inventory)}, *turns, {"role": "user", "content": user}]

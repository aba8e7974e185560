"""The system prompt, and the messages of a chat."""

from jaxsim import check

FORMAT_VERSION = "2"  # of everything that `prompting` writes and reads; changes when a text or its meaning does

SYSTEM = """You are a SOC analyst. Each tick you see the network and answer with one action.
MONITOR: wait. Free.
INVESTIGATE an asset or identity: forensics next tick, sometimes wrong. Free.
ISOLATE_ASSET or REVOKE_IDENTITY: cut it off. Stops attack stages on it, costs its value every tick until the end.
BLOCK_EGRESS of an asset: stops data leaving through it, at less cost.
PATCH_ASSET: attacks on it fail more often.
Many alerts are false, and there may be no attack. Contain only what alerts and forensics point to. Stop data theft.
Answer with JSON only: {"action": "MONITOR"} or {"action": "INVESTIGATE", "target": "NAME"}"""


def system_prompt() -> str:
    """The system message; the same for every scenario."""
    return SYSTEM


def chat(user: str, examples: tuple[tuple[str, str], ...] = ()) -> list[dict[str, str]]:
    """The messages of one decision, in the roles of a chat template. `examples` are turns shown before it."""
    check.kind("user", user, str, "the text of prompting.render")
    if not all(isinstance(x, tuple | list) and len(x) == 2 and all(isinstance(y, str) for y in x) for x in examples):
        raise ValueError(f"examples = {check.said(examples)} are no turns; give pairs of texts, (shown, answer)")
    turns = [
        message
        for shown, answer in examples
        for message in ({"role": "user", "content": shown}, {"role": "assistant", "content": answer})
    ]
    return [{"role": "system", "content": SYSTEM}, *turns, {"role": "user", "content": user}]

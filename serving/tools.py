"""The game as tools of a language model: TRL's `environment_factory`, and whatever else calls typed methods.

    GRPOTrainer(model, train_dataset=rows, environment_factory=partial(SocTools, scenario="insider_repo_pivot"))

Columns of a row that `serving.messages.Start` knows (seed, episode, scenario, ...) say what is played: rows of a group
are equal, so all of it meet the same luck. Nothing here imports TRL.
"""

from typing import Any

from grpo.playing.choices import ON_CHANGE
from jaxsim import check
from jaxsim.types import MONITOR, VERBS
from serving.desk import Desk, brief, start_of
from serving.sessions import Limits

LONGEST = 10_000  # ticks, of a wait


class SocTools:
    """One analyst. Every public method but `reset` and `get_reward` is a tool; instances are used again and again.

    A tool raises ValueError, and no time passes, for what is no action of the game, before the first reset and once the
    episode is over. `asking` and `entities` as of `desk.Desk`; `start`: what is played where a row does not say.
    """

    def __init__(self, asking: str = ON_CHANGE, entities: int = Limits().entities, **start: Any) -> None:
        start_of(start)
        self.desk, self.start = Desk(asking, entities), start

    def reset(self, **row: Any) -> str:
        """Begin the episode of a row of data; what a model is told of the game, and the first view."""
        shown = self.desk.reset(start_of(self.start | {k: v for k, v in row.items() if v is not None}, ignoring=True))
        return f"{brief(self.desk.inventory.dims.restore)}\n{shown}"

    def get_reward(self) -> float:
        """The return of the whole episode, points; whoever stopped calling tools waits to its end."""
        return self.desk.finish()

    @property
    def record(self) -> dict[str, Any]:
        """The episode as `jaxsim-soc replay` plays it."""
        return self.desk.record()

    def wait(self, at_most: int = LONGEST) -> str:
        """Wait until something is new.

        Args:
            at_most: The most ticks to wait.

        Returns:
            What is new.
        """
        return self.desk.act(self.desk.action(VERBS[MONITOR]), check.whole("at_most", at_most, 1, LONGEST)).text

    def investigate(self, target: str) -> str:
        """Order forensics of an asset or identity. Sometimes wrong; may have a price.

        Args:
            target: The name of the asset or identity.

        Returns:
            What is new, with the verdict.
        """
        return self._act("INVESTIGATE", target)

    def isolate_asset(self, target: str) -> str:
        """Cut off an asset: stops attack stages on it, and costs its value every tick.

        Args:
            target: The name of the asset.

        Returns:
            What is new.
        """
        return self._act("ISOLATE_ASSET", target)

    def revoke_identity(self, target: str) -> str:
        """Cut off an identity: stops attack stages on it, and costs its value every tick.

        Args:
            target: The name of the identity.

        Returns:
            What is new.
        """
        return self._act("REVOKE_IDENTITY", target)

    def block_egress(self, target: str) -> str:
        """Stop data from leaving through an asset, at less cost than isolating it.

        Args:
            target: The name of the asset.

        Returns:
            What is new.
        """
        return self._act("BLOCK_EGRESS", target)

    def patch_asset(self, target: str) -> str:
        """Patch an asset: attacks on it fail more often.

        Args:
            target: The name of the asset.

        Returns:
            What is new.
        """
        return self._act("PATCH_ASSET", target)

    def restore(self, target: str) -> str:
        """Lift isolation, egress block or revocation, where the rules have it. The attack can use it again.

        Args:
            target: The name of the asset or identity.

        Returns:
            What is new.
        """
        return self._act("RESTORE", target)

    def _act(self, verb: str, target: str) -> str:
        return self.desk.act(self.desk.action(verb, target)).text

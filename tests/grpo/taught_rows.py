"""What is learned from in the tests of training: a campaign, and rows of a teacher's play there."""

from grpo.rows import rows
from jaxsim.policies import BASELINES


def campaign(rules: str) -> rows.Campaigns:
    return rows.campaigns(("supply_chain_token_drift",), rules, "operational")


def taught(game: rows.Campaigns) -> rows.Rows:
    """Rows of the teacher's play, with their credit."""
    bank = rows.from_teacher(game, BASELINES["evidence"], 24, seed=3)
    return rows.credited(game, bank, futures=4, least_z=0.0, seed=1, layout="compact", reference=0)

"""What may be chosen for an evaluation, where settings and options can read it without torch."""

ALWAYS_ASK, ON_CHANGE = "always", "on-change"
ASKING = (ALWAYS_ASK, ON_CHANGE)  # when the model is asked: each tick, or when its view has changed (else MONITOR)
CONSTRAINED, FREE, EXACT = "constrained", "free", "exact"
DECODINGS = (CONSTRAINED, FREE, EXACT)  # the model's own words, kept to legal answers, or all of these weighed at once
OPEN_LOOP, LEARNED, MEMORYLESS = "open-loop", "learned", "memoryless"
# Policies that an evaluation may have beside the model; the last two are the audit's and the one that teaches models.
OTHERS = ("heuristic", OPEN_LOOP, "evidence", LEARNED, MEMORYLESS)
MAX_EPISODES = 10_000  # of a campaign in an evaluation
BASE, TRAINED = "base", "trained"  # rows of a model without an adapter and with one

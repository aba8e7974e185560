"""What a certificate asks of investigating, beside what it asks of reading at all."""

CERTIFIED_VOI_NORM = 0.15  # share of the gain that comes from investigating
CERTIFIED_BACKED = 0.5  # share of the containments of the best reading policy that are evidence-backed

PAYS_TO_INVESTIGATE = f"VOI_norm ≥ {CERTIFIED_VOI_NORM}"
CONTAINS_THE_CONFIRMED = f"{CERTIFIED_BACKED:.0%} of containments evidence-backed"

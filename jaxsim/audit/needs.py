"""What a certificate asks of investigating, beside what it asks of reading at all."""

CERTIFIED_VOI_NORM = 0.15  # share of the gain that comes from investigating
PAYS_TO_INVESTIGATE = f"VOI_norm ≥ {CERTIFIED_VOI_NORM}"

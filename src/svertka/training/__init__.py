"""Training: from a plan to a run folder."""

"""The trainer: one attempt of a run, from claim to artifact, as one process."""

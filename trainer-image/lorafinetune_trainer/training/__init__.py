"""The mathematics of a run."""

"""Phases, the step across workers, checkpoints, and the Ray Train glue."""

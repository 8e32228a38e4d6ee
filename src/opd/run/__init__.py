"""The run folder: checkpoints, metrics, rollouts."""

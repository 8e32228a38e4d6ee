"""Engines that score rollouts."""

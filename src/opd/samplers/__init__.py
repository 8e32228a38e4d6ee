"""Engines that write rollouts with the student."""

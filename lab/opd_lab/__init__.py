"""Tiny verifiable worlds and the experiments that run in them."""

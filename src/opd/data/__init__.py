"""Prompts in, grades out."""

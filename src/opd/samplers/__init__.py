"""Samplers of rollouts: this process, a vLLM server, recorded files."""

"""Samplers of rollouts: this process, a vLLM or SGLang server, recorded files."""

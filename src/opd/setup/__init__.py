"""From configuration to objects: models, teacher, prompts, samplers, a session."""

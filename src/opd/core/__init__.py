"""Pure functions on tensors: no models, no files, no configuration."""

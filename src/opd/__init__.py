"""On-policy distillation of language models. Importing this package does not import torch."""

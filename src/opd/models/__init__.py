"""Language models and tokenizers: loading, heads, LoRA, compatibility."""

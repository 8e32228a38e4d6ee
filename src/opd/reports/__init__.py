"""Run folder in, one page out. Never imports torch."""

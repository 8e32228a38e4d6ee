"""On-policy distillation against tuned supervised training: every arm at its own best rate.

`regimes` says who learns from whom, `training` trains an arm, `auto` the product's recipe, `study`
what is missing, with a record of each, `choice` picks the rate by validation, `page` writes
docs/opd-or-sft.md.
"""

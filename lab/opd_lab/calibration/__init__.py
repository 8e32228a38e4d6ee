"""`opd lab calibrate`: what `opd check` says, held against what training then did.

grid (who learns from whom) - outcomes (probe and run of each pair) - fitting (the prospect, on some
worlds and seeds) - judging (its promises, on others) - page (docs/check.md).
"""

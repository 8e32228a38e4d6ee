"""`opd lab calibrate`: what `opd check` predicts, compared with what training then does.

grid (the pairs) - outcomes (probe and run of each pair) - fitting (the forecast, on some worlds and
seeds) - judging (its targets, on others) - page (docs/check.md).
"""

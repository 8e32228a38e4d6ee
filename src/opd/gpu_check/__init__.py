"""One command that proves opd on a GPU: `python -m opd.gpu_check` or `make gpu-check`.

It needs no download: models are random, of real shapes, made on the device. Sections are ordered by
importance; one that would not end before the deadline is skipped and reported as skipped. On a CPU
it runs with tiny shapes, so that it cannot rot.
"""

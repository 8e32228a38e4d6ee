"""Parts that several test modules use: doubles of disks and ranks, builders, checks.

A test module imports from here, from conftest or from `opd.testing`, never from a test module.
"""

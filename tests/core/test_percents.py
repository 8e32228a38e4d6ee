"""Only what is certain reads as 0 or 100 percent."""

from __future__ import annotations

import pytest

from opd.core.percents import percents
from opd.reports.formatting import interval


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.9998, 1, "99.98"),
        (0.00004, 1, "0.004"),
        (1.0, 1, "100.0"),
        (0.0, 1, "0.0"),
        (-0.0, 1, "0.0"),
        (0.123, 1, "12.3"),
        (1 - 1e-12, 1, "99.9999"),
        (1e-12, 1, "0.0001"),
        (0.998, 0, "99.8"),
        (-0.25, 1, "-25.0"),
    ],
)
def test_a_fraction_short_of_one_is_not_a_hundred_percent(value, digits, text):
    assert percents(value, digits) == text


def test_a_bound_of_an_interval_is_not_rounded_to_certainty():
    assert interval(0.0002, 0.9998) == "0.02 to 99.98%"

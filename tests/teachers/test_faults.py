"""57 faults, three phases, once and for ever: right scores or a named error, never silence."""

from __future__ import annotations

import pytest

from support import teacher_faults as faults
from support.everyday import everyday

# A refusal is not tried again: one is enough to end the run, with the server's own words.
FINAL = ("400", "401", "402", "403", "404", "405", "409", "413", "415", "422", "301", "307")


@pytest.mark.parametrize("name", everyday(faults.FAULTS, *range(0, 100, 2)))
def test_survived_or_named_and_never_for_ever(name):
    for phase in faults.PHASES:
        once, ever = (faults.case(name, phase, times) for times in (1, None))
        assert once.ended in ("survived", "named"), (phase, once)
        if name not in ("clock leaps an hour",):
            assert ever.ended == "named", (phase, ever)
        if name.startswith(FINAL):
            assert once.ended == "named"
            assert once.virtual < 5  # nothing was waited for


def test_a_refusal_carries_the_servers_words_and_the_key_to_set():
    message = faults.case("401", "middle", None).message
    assert "said the server" in message
    assert "teacher.api_key_env" in message


def test_a_teacher_that_stays_away_is_named_with_what_is_kept():
    message = faults.case("connection refused", "last", None).message
    assert "3 of 4 scored" in message
    assert "--resume" in message

"""The paper's findings as entries: who learns from whom, what varies, what was found, by what rule.

`entries()` is the whole lab, `quick_entries()` the five that fit into three minutes.
"""

from opd_lab.experiments.entry import Bench, Claim, Entry, Found, Line, verdict
from opd_lab.experiments.exploration import e16
from opd_lab.experiments.horizon import e13
from opd_lab.experiments.mechanism import e4, e9, e10
from opd_lab.experiments.prompts import e7
from opd_lab.experiments.rescue import e6
from opd_lab.experiments.supports import e5, e11
from opd_lab.experiments.teachers import FULL, QUICK_CAST, e1, e2, e3
from opd_lab.experiments.worth import e8, e15

__all__ = ["Bench", "Claim", "Entry", "Found", "Line", "entries", "quick_entries", "verdict"]


def entries() -> dict[str, Entry]:
    """Every experiment of the lab by name."""
    found = [
        e1(FULL),
        e2(FULL),
        e3(FULL),
        e4(FULL),
        e5(FULL),
        e6(),
        e7(),
        e8(),
        e9(FULL),
        e10(FULL),
        e11(),
        e13(),
        e15(),
        e16(),
    ]
    return {entry.name: entry for entry in found}


def quick_entries() -> dict[str, Entry]:
    """The experiments of `--quick`: smaller models, teachers by supervised training."""
    found = [e1(QUICK_CAST), e2(QUICK_CAST), e3(QUICK_CAST), e5(QUICK_CAST), e9(QUICK_CAST)]
    return {entry.name: entry for entry in found}

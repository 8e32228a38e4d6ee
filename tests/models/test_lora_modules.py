"""Modules that adapters are put on: unknown ones are named, with what there is."""

from __future__ import annotations

import warnings

import pytest

from opd.errors import UserError
from opd.models.lm import add_lora


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            ["q_prj", "v_proj"],
            r"q_prj: no module of this model\. Did you mean q_proj\? Allowed",
        ),
        (
            "nothing.*",
            r"nothing\.\*: no module of this model\. Allowed: .*, or a list of .*q_",
        ),
        ([], r"no module is named"),
    ],
)
def test_unknown_modules_are_named_with_what_there_is(make_lm, wanted, said):
    """Of two names, the wrong one was ignored."""
    with pytest.raises(UserError, match=rf"student\.lora\.target_modules=.*{said}"):
        add_lora(make_lm(), rank=2, alpha=4.0, target_modules=wanted, seed=0)


def test_adapters_are_added_without_a_warning(make_lm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(make_lm(), rank=2, alpha=4.0, target_modules=["q_proj"], seed=0)

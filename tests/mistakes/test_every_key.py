"""Every key of run.yaml is used, refused or said: none is taken and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opd.config import settable_keys
from support.every_key import difference
from support.key_effects import EFFECTS

ROOT = Path(__file__).parents[2]


def test_no_key_is_forgotten():
    assert [effect.key for effect in EFFECTS] == list(settable_keys())


@pytest.mark.parametrize(
    "effect", [e for e in EFFECTS if e.shows.startswith("test:")], ids=lambda e: e.key
)
def test_a_key_that_is_tried_elsewhere_has_its_test_there(effect):
    file, _, name = effect.shows.removeprefix("test:").partition("::")
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def marked(effect):
    return pytest.param(effect, id=effect.key, marks=() if effect.quick else (pytest.mark.slow,))


@pytest.mark.parametrize("effect", [marked(e) for e in EFFECTS if not e.shows.startswith("test:")])
def test_a_key_is_used_or_refused(effect):
    assert difference(effect) is None

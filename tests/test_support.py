"""Shared parts of tests live in tests/support: no test module imports another."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
IMPORT = re.compile(r"^\s*(?:from|import) (?:[\w.]+\.)?test_\w+", re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.relative_to(TESTS).as_posix()
)
def test_a_test_module_is_imported_by_nobody(path):
    text = path.read_text("utf-8")
    assert not IMPORT.findall(text)
    assert not re.search(r"\bsys\.path\b.*(?:\+=|append|insert)", text)

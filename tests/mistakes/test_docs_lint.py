"""What the documentation says about failures has a test, named beside it.

The form: `<!-- test: FILE::NAME -->`, in the paragraph or table or in a block right after
it. Results of measurements need none.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"<!-- test: ([^\s:]+)(?:::(\w+))? -->")
# Words that promise something about what goes wrong.
CLAIM = re.compile(
    r"\b(is|are|it|and|loop) refuse[ds]?\b|\brefuses\b|\bKilled\b|resumed run|may be resumed"
    r"|resumed on|--resume`|disk full|\bdamaged\b|stopped and resumed",
)
# Tables and accounts of what was measured, not of what the code promises.
MEASURED = {
    "docs/gpu.md": "measurements on one machine, repeated by `make gpu-check`",
    "docs/check.md": "made by `opd lab judge`",
    "docs/lab.md": "made by `opd lab run`",
    "docs/config.md": "made from the configuration, whose validators have their own tests",
    "docs/performance.md": "benchmarks",
}
MEASURED_BLOCKS = ("Two pairs were refused", "and refused two")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(path: Path) -> list[str]:
    return re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_test_that_a_page_names_exists(page):
    for file, name in MARK.findall(page.read_text(encoding="utf-8")):
        path = ROOT / file
        assert path.is_file(), f"{page.name} names {file}, which is not there"
        if name:
            text = path.read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_promise_about_failures_has_a_test_beside_it(page):
    if str(page.relative_to(ROOT)) in MEASURED:
        return
    unproven = []
    all_blocks = blocks(page)
    for block, after in zip(all_blocks, [*all_blocks[1:], ""], strict=True):
        proven = MARK.search(block) or after.lstrip().startswith("<!-- test: ")
        measured = any(words in block for words in MEASURED_BLOCKS)
        if CLAIM.search(block) and not proven and not measured and not block.startswith("```"):
            unproven.append(block[:200])
    assert not unproven, "\n---\n".join(unproven)

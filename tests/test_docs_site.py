"""The documentation as a site: every page has its place, every link a target, no remote part."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.glob("*.md"),
    *DOCS.glob("gallery/*.md"),
    *DOCS.glob("lab-again/*.md"),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Ids of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    plain = [re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", h).lower() for h in headings]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", h)) for h in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_has_a_target(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    broken = []
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            broken.append(link)
    assert not broken


def nav_pages(entries) -> set[str]:
    pages = set()
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            pages |= {value} if isinstance(value, str) else nav_pages(value)
    return pages


def test_every_page_has_its_place_in_the_site():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES if page.is_relative_to(DOCS)}
    assert nav_pages(site["nav"]) == pages
    assert site["theme"]["font"] is False  # no request to a font server


HREF = re.compile(r'<(a|img|script|link)\b[^>]*?\s(?:href|src)="?([^"\s>]+)')


def targets(page: Path, site: Path) -> list[str]:
    """Links of a built page that lead nowhere, and parts of it that another server has."""
    wrong = []
    for tag, link in HREF.findall(page.read_text("utf-8")):
        url, _, anchor = unescape(link).partition("#")
        if re.match(r"[a-z]+:", url):
            wrong += [link] if tag != "a" and not url.startswith("data:") else []
            continue
        file = (page.parent / unquote(url)).resolve() if url else page
        found = file.is_file() and file.is_relative_to(site)
        if not found or (anchor and f'id="{anchor}"' not in file.read_text("utf-8")):
            wrong.append(link)
    return wrong


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_is_built_with_every_link_and_asks_nobody(tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) >= len(PAGES) - 3  # README, ARCHITECTURE and CONTRIBUTING are for clones
    assert (site / "repository/LOG.html").is_file()
    assert {p.name: wrong for p in pages if (wrong := targets(p, site))} == {}

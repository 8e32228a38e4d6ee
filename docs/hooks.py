"""Hooks of mkdocs: files outside docs/ that a page links to, such as LOG.md, join the site."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = "repository"  # folder of the site for what stands outside docs/
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def in_site(file: Path) -> str:
    """Where a file of the repository stands in the site."""
    if file.is_relative_to(DOCS):
        return file.relative_to(DOCS).as_posix()
    return f"{ELSEWHERE}/{file.relative_to(ROOT).as_posix()}"


def in_repository(uri: str) -> Path:
    """The file of the repository that a page of the site was made of."""
    return ROOT / uri.removeprefix(f"{ELSEWHERE}/") if uri.startswith(ELSEWHERE) else DOCS / uri


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to."""
    text = CODE.sub("", page.read_text("utf-8"))
    targets = {(page.parent / link).resolve() for link in LINK.findall(text) if ":" not in link}
    return {file for file in targets if file.is_file() and file.is_relative_to(ROOT)}


def on_files(files: Any, config: Any) -> Any:
    """Add what the pages of docs/ link to outside docs/, and what those pages link to."""
    pages = {in_repository(file.src_uri) for file in files.documentation_pages()}
    known = set(pages)
    while pages:
        new = {file for page in pages for file in linked(page)} - known
        outside = {file for file in new if not file.is_relative_to(DOCS)}
        for file in sorted(outside):
            files.append(File.generated(config, in_site(file), abs_src_path=str(file)))
        known |= new
        pages = {file for file in outside if file.suffix == ".md"}
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at where their targets stand in the site."""
    source = in_repository(page.file.src_uri)
    here = Path(page.file.src_uri).parent

    def site_link(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if ":" in match[1] or not target.is_file() or not target.is_relative_to(ROOT):
            return match[1]
        return Path(os.path.relpath(in_site(target), here)).as_posix()

    return LINK.sub(site_link, markdown)

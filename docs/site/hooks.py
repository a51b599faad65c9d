"""Hooks of the documentation site (mkdocs.yml).

The pages are written for a code host: the README is the front, pages link to files by their place in the
repository. Here README, CONTRIBUTING, CHANGELOG and every other file that a page links to become pages of the
site too, and links are turned into links between pages.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside docs/, and what they are called on the site."""

_LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
_NAMED_FENCE = re.compile(r"^```(\w+)[ \t]+(\S+)$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".cff": "yaml"}


@cache
def linked_sources() -> dict[str, str]:
    """Files outside docs/ that a page links to and that are no pages: where they stand on the site."""
    found = {}
    for page in (*(ROOT / name for name in PAGES), *DOCS.rglob("*.md")):
        for _open, link, _anchor, _close in _LINK.findall(page.read_text("utf-8")):
            path = (page.parent / link).resolve()
            if path.is_file() and ROOT in path.parents and DOCS not in path.parents:
                name = path.relative_to(ROOT).as_posix()
                if name not in PAGES:
                    found[name] = f"files/{name}.md"
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts pages that the menu does not name at the end of its guides, so that a new one is never lost."""
    menu = str(config.nav)
    [guides] = [section["Guides"] for section in config.nav or [] if "Guides" in section]
    guides.extend(sorted(page.name for page in DOCS.glob("*.md") if f"'{page.name}'" not in menu))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie outside docs/."""
    for name, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text("utf-8")))
    for name, place in linked_sources().items():
        path = ROOT / name
        language = _LANGUAGES.get(path.suffix, "text")
        content = f"# {name}\n\n````{language}\n{path.read_text('utf-8')}````\n"
        file = File.generated(config, place, content=content)
        # Not in the menu: pages link to it.
        file.inclusion = type(file.inclusion).NOT_IN_NAV
        files.append(file)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_kwargs: Any) -> str:
    """Turns links of the repository into links of the site, and names of code blocks into titles."""
    source = _in_repository(page.file.src_uri)
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]

    def moved(found: re.Match[str]) -> str:
        path = Path(os.path.normpath(ROOT / source.parent / found[2]))
        if not path.exists():
            return found[0]
        place = os.path.relpath(_on_site(path), Path(page.file.src_uri).parent)
        return f"{found[1]}{place}{found[3] or ''}{found[4]}"

    return _NAMED_FENCE.sub(r'```\1 title="\2"', _LINK.sub(moved, markdown))


def on_page_content(html: str, *, page: Page, **_kwargs: Any) -> str:
    """Turns a notebook's links to pages into links of the site: they were no Markdown of mkdocs."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return re.sub(r'(href="(?!\w+:)[^"#]+)\.(?:md|ipynb)(?=["#])', r"\1.html", html)


def _in_repository(src_uri: str) -> Path:
    """Where a page of the site lies in the repository."""
    for name, place in {**PAGES, **linked_sources()}.items():
        if place == src_uri:
            return Path(name)
    return Path("docs", src_uri)


def _on_site(path: Path) -> str:
    """Where a file of the repository stands on the site; where it does not, a path that mkdocs refuses."""
    name = path.relative_to(ROOT).as_posix()
    return {**PAGES, **linked_sources()}.get(name) or os.path.relpath(path, DOCS)

"""The documentation site's own code; the site itself is built by `make docs`."""

from __future__ import annotations

import json
import re

import pytest

import stepvar
from doc_pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_every_public_name_is_on_one_page_of_the_reference():
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    named = re.findall(r"^::: stepvar\.(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == stepvar.__all__


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_a_notebook_holds_no_outputs_and_its_links_lead_somewhere(notebook):
    """The site is built with outputs of its own, so that none are out of date."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    assert [cell["source"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (notebook.parent / link).exists()] == []

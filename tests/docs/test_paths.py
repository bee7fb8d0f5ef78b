"""Files and modules that a page names exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, page_name


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:cluster|data_shards|detectors|docs|pipelines|tests)/[\w/.]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=page_name)
def test_files_that_a_page_outside_the_site_links_to_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_new_paths_of_the_changelog_can_be_imported() -> None:
    rows = re.findall(r"^\| `[\w.]+` \| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 100
    modules = [module for row in rows for module in re.findall(r"`([\w.]+)`", row)]
    assert [module for module in modules if find_spec(module) is None] == []

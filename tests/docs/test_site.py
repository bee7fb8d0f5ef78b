"""`make docs` builds the site without a warning, with pages for what the code itself knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.cli import command_line
from pipelines.recipes.recipe import fields
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_fetches_nothing_when_it_is_read(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page.read_text())
        assert loaded == [], page.name


def test_every_command_has_its_place(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text()
    for name in command_line()._subparsers._group_actions[0]._choices_actions:  # type: ignore[union-attr]
        assert f"aweigh {name.dest}" in text, name.dest


def test_every_field_is_listed_with_its_meaning(site: Path) -> None:
    text = (site / "reference" / "fields.html").read_text()
    rows = dict(re.findall(r"<td><code>([\w.]+)</code></td>\s*<td>.*?</td>\s*<td>(.*?)</td>", text))
    assert sorted(rows) == sorted(fields())
    assert [name for name, meaning in rows.items() if not meaning] == []


def test_every_recipe_is_listed(site: Path) -> None:
    text = (site / "reference" / "recipes.html").read_text()
    assert [name for name in recipes.names() if f"<code>{name}</code>" not in text] == []

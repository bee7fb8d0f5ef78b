"""The blocks that a page marks with `<!-- run -->` do what the page says, one after the other in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks, page_name

RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page.read_text()))]


def test_pages_have_blocks_to_run() -> None:
    assert "docs/tutorial.md" in map(page_name, RUNNABLE)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=page_name)
def test_the_marked_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, words in (("aweigh", "-m pipelines"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (commands / name).chmod(0o755)
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "AWEIGH_CACHE": str(tmp_path / "cache"),
    }
    for block in blocks(page.read_text()):
        if block.runs:
            _run(block, folder, environment)


def _run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    shell = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[block.language]
    done = subprocess.run(
        [*shell, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

"""Every message that the troubleshooting page quotes is one that aweigh prints."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"


def _quoted() -> list[str]:
    """The first cells of the tables, where they are messages."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), flags=re.MULTILINE)


@cache
def _texts() -> tuple[str, ...]:
    """Every string of the packages, with `…` for what is put into it."""
    files = [
        file
        for package in ("cluster", "data_shards", "detectors", "pipelines")
        for file in ROOT.glob(f"{package}/**/*.py")
    ]
    return tuple(text for file in files for text in _strings(ast.parse(file.read_text())))


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _matches(quoted: str, text: str) -> bool:
    """Tell whether the parts of the quotation are in the text, in order."""
    pattern = r".*".join(re.escape(part.strip()) for part in quoted.split("…") if part.strip())
    return re.search(pattern, text, flags=re.DOTALL) is not None


def test_the_page_quotes_messages() -> None:
    assert len(_quoted()) > 30


@pytest.mark.parametrize("quoted", _quoted())
def test_aweigh_prints_what_the_page_quotes(quoted: str) -> None:
    # A server's own words come after ours.
    ours = quoted.partition(": SlowDown")[0]
    assert any(_matches(ours, text) for text in _texts())

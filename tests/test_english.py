"""Idioms that read as if translated are not in the text that people read.

The tests look at docstrings, at the strings of the product's code (messages and help), and at the documents.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "data_shards", "detectors", "pipelines")

# A space in a pattern is any white space, so that a line break hides nothing.
IDIOMS = {
    # Points do lie inside a box; files are in a folder.
    r"\b(lies?|lying|lain)\b(?! (inside|outside|within|between))": "is, is in, is listed",
    r"\b(stands?|stood)\b(?!-in)(?! (for|in for)\b)": "is, is in, is listed",
    r"\bhouses?\b|\brooms?\b": "architecture, package; space",
    r"(?<!there )(?<!There )\b(is|are) no\b(?! (longer|more than|less than|later than|larger than|smaller than)\b)": (
        "is not, there are no"
    ),
    r"\bgives\b(?! up)|\b(is|are) given\b": "returns, receives",
    r"\b(is|are|was|were|be|been) told\b": "receives, is logged",
    r"\b(go|goes|going|gone|went) on\b": "resumes, continues",
    r"\bso (many|much)\b": "at most this many",
    r"\b(for|of|by|to) who\b|\b(of|to|by|from) whom\b": "for whoever, for those who; name the person or the part",
    r"\b(is|are) another(?=[.,;:)]|'s| one\b|$)": "differs",
    r"\b(is|are) to be\b": "must be, will be",
    r"\b(is|are|was|were) there (twice|already|so)\b": "exists, is listed twice",
    r"\bharm(ed|s)?\b|\btorn\b": "damaged",
    r"\b(comes?|came) to (its|an|the) end\b": "ends, finishes",
    r"\bnothing stands in the way\b": "all checks passed",
    r"\banew\b": "again, from the start",
    r"\btill\b": "until",
    r"\bshall\b": "must, will",
    r"\b(thereof|therein|thereby|hereby|wherein|whereupon)\b": "of it, in it, so",
}
CLAUSE = re.compile(r"(What|Where|Whether|How|Which|Who|Whose|Whom)\b(?![^\n]*\?)")


def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("(?<!there )(?<!There )", r"(?<!\b[Tt]here\s)").replace(" ", r"\s+"))


PATTERNS = [(compiled(pattern), better) for pattern, better in IDIOMS.items()]


def idioms(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line (from 0) of each idiom in a text, with the idiom and what to write instead."""
    for pattern, better in PATTERNS:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()), f"{' '.join(match[0].split())!r}; write: {better}"


def strings(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield line, text, and whether it is a docstring, of every string in a module that holds words."""
    tree = ast.parse(path.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for one in body if isinstance(body, list) else []:
            # Docstrings, and the texts under fields, which are the help of settings.
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                docstrings.add(id(one.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value, id(node) in docstrings


def found_in_code() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, text, is_docstring in strings(path):
                for offset, idiom in idioms(text):
                    yield f"{path.relative_to(ROOT)}:{line + offset}: {idiom}"
                if is_docstring and CLAUSE.match(text.strip()):
                    yield f"{path.relative_to(ROOT)}:{line}: first line is a bare clause: {text.strip()[:60]!r}"


def found_in_documents() -> Iterator[str]:
    documents = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.yaml"),
        *ROOT.glob("cluster/*/*.yaml"),
    ]
    for path in sorted(documents):
        for offset, idiom in idioms(path.read_text()):
            yield f"{path.relative_to(ROOT)}:{1 + offset}: {idiom}"


def test_the_code_has_no_translated_idioms() -> None:
    found = list(found_in_code())
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


def test_the_documents_have_no_translated_idioms() -> None:
    found = list(found_in_documents())
    assert not found, f"{len(found)} places:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        *("The file lies here.", "a box stands\nthere twice", "manifest is no\nJSON", "Whoever it is given to"),
        *(
            "so many steps at most",
            "the run goes on",
            "for who has to make room",
            "whose size is another",
            "one is torn",
        ),
        *(
            "to be trained anew",
            "what is to be read",
            "its name is there twice",
            "a run of whom nobody knows",
            "it is told so",
        ),
    ],
)
def test_idioms_are_found(text: str) -> None:
    assert list(idioms(text))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "there are no boxes",
            "There is no\nfile",
            "it is no longer used",
            "a stand-in",
            "Points lie inside their box.",
        ),
        *("gives up after 5 attempts", "an understanding", "is no more than 4", "if it is there to help", "go once"),
        *("`aweigh` stands for the command", "if it is another folder", "once the new ones are there"),
    ],
)
def test_plain_english_is_left_alone(text: str) -> None:
    assert list(idioms(text)) == []


def test_a_first_line_that_is_a_clause_is_told_from_a_question() -> None:
    assert CLAUSE.match("Where shards lie.")
    assert not CLAUSE.match("Which of two detectors is better? Compare them.")
    assert not CLAUSE.match("Whatever follows is read.")

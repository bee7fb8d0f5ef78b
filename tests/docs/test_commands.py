"""Every aweigh command that a page shows is one that the command line takes."""

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cluster.workers import dividing_worlds
from pipelines import recipes
from pipelines.cli import command_line
from pipelines.recipes.recipe import with_flags
from tests.docs.pages import PAGES, ROOT, blocks, commands, page_name

# Placeholders for the reader's own words, and a word that is one.
PLACEHOLDERS = {
    **dict.fromkeys(("NAME", "RECIPE", "recipe.yaml", "mine.yaml", "FILE.yaml"), "demo"),
    "N": "1",
}


def _commands() -> Iterator[tuple[str, str, bool]]:
    seen = set()
    for page in PAGES:
        for command, in_passing in commands(page.read_text()):
            if command not in seen:
                seen.add(command)
                yield page_name(page), command, in_passing


@cache
def _parser() -> argparse.ArgumentParser:
    return command_line()


def _leaf(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser that reads the arguments of a command, and these arguments."""
    parser = _parser()
    while words:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not groups or words[0] not in groups[0].choices:
            break
        parser, words = groups[0].choices[words[0]], words[1:]
    return parser, words


def _completed(words: list[str]) -> list[str]:
    """The words, with what the command needs and a sentence leaves out."""
    parser, rest = _leaf(words)
    path = words[: len(words) - len(rest)]
    needed = [action for action in parser._actions if action.required]
    options = [
        name for action in needed for name in action.option_strings[:1] if not {*action.option_strings} & {*rest}
    ]
    takes_one = any(not action.option_strings for action in needed)
    first = ["demo"] if takes_one and (not rest or rest[0].startswith("--")) else []
    if rest and (last := parser._option_string_actions.get(rest[-1])) and last.nargs != 0:
        rest = [*rest, str(next(iter(last.choices or ["1"])))]
    return [*path, *first, *rest, *(word for name in options for word in (name, "1"))]


@pytest.mark.parametrize(("page", "command", "in_passing"), sorted(_commands()))
def test_a_command_of_a_page_is_understood(page: str, command: str, in_passing: bool) -> None:
    if command == "aweigh --version":
        return
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command.replace("…", ""))[1:]]
    parser, rest = _leaf(words)
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        assert in_passing, f"{page}: {command} is not a whole command"
        assert rest in ([], ["--help"]), f"{page}: {command} has no such command"
        return
    if in_passing or "…" in command:
        words = _completed(words)
    known, rest = _parser().parse_known_args(words)
    assert callable(known.run)
    # A command that does not take fields refuses what it does not know.
    recipe = with_flags(recipes.get(getattr(known, "recipe", None) or "demo"), rest)
    if words[0] in ("train", "submit"):
        assert dividing_worlds(recipe.batch.global_size, recipe.cluster)


def test_commands_are_found_in_blocks_sentences_and_loops() -> None:
    text = (
        "Say `aweigh ui` or\n\n```sh\nfor rate in 1e-3 2e-3; do\n    aweigh train demo \\\n        --a $rate  # one\n"
        "done\n```\n\n    X=1 aweigh bench loader > out\n    aweigh 0    114.6\n    aweigh, handed over    2.43\n"
    )
    assert commands(text) == [
        ("aweigh train demo --a 1e-3", False),
        ("aweigh bench loader", False),
        ("aweigh ui", True),
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_the_python_of_a_page_compiles(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python":
            compile(block.text, str(page), "exec")


def test_no_document_has_a_gap_left_to_fill() -> None:
    for path in PAGES:
        assert re.findall(r"\b(?:DEMO|FIGURE)_[A-Z]+|TODO", path.read_text()) == [], path.name


def test_the_pages_name_every_recipe_of_the_published_schedules() -> None:
    text = (ROOT / "docs" / "how-to" / "schedules.md").read_text() + (ROOT / "README.md").read_text()
    for name in recipes.names():
        assert re.sub("_[123]x$", "", name) in text, name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130

"""Every aweigh command that the README shows is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.cli import command_line
from pipelines.recipes.recipe import with_flags

ROOT = Path(__file__).resolve().parents[2]


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (aweigh .*)$", text, flags=re.MULTILINE) + re.findall(r"`(aweigh [^`]*)`", text)
    return [line.split("#")[0].split(">")[0].replace("…", "").strip() for line in lines]


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_a_command_of_the_readme_is_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    if "NAME" in words:
        words[words.index("NAME")] = "demo"
    if words[:2] == ["shards", "build"] and "--annotations" not in words:
        words += ["--annotations", "a.json", "--images", "images"]  # the README leaves them out with "…"
    if words == ["weights", "import"]:
        words += ["weights.pth", "--detector", "fcos_resnet50"]  # named in passing
    if words == ["weights", "export"]:
        words += ["runs/cells", "--output", "weights.pth"]
    known, rest = command_line().parse_known_args(words)
    assert callable(known.run)
    if not getattr(known, "takes_fields", False):
        assert rest == []
    elif not (known.command == "train" and str(known.recipe).endswith(".yaml")):
        with_flags(recipes.get(getattr(known, "recipe", None) or "demo"), rest)


def test_no_document_has_a_gap_left_to_fill() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert re.findall(r"\b(?:DEMO|FIGURE)_[A-Z]+|TODO", path.read_text()) == [], path.name


def test_the_readme_names_every_recipe_of_the_published_schedules() -> None:
    text = (ROOT / "README.md").read_text()
    for name in recipes.names():
        assert re.sub("_[123]x$", "", name) in text, name

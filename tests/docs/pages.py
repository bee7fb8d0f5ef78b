"""The pages of the documentation, cut into the parts that tests read: commands, blocks to run, quoted messages."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
    + list((ROOT / "docs").rglob("*.md"))
)

_FENCE = re.compile(r"^( *)(<!-- run -->\n *)?```(\w*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    runs: bool
    """`<!-- run -->` is in the line before it."""


def page_name(path: Path) -> str:
    """Its path from the top folder."""
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(language, body, bool(mark)) for _, mark, language, body in _FENCE.findall(text)]


def commands(text: str) -> list[tuple[str, bool]]:
    """Every `aweigh` command of a page, and whether it is only named in a sentence.

    Commands are lines of shell blocks and of indented blocks, with the values of loops and assignments put into them,
    and code inside sentences.
    """
    scripts = "\n".join(block.text for block in blocks(text) if block.language == "sh")
    prose = _FENCE.sub("", text)
    indented = "\n".join(line for line in prose.replace("\\\n", " ").splitlines() if line.startswith("    "))
    script = f"{scripts}\n{indented}".replace("\\\n", " ")
    variables = dict(re.findall(r"\bfor (\w+) in (\S+)", script) + re.findall(r"\b([A-Z]+)=\"([^\"]*)\"", script))
    # A word after `aweigh` that is no word is a figure: tables of measurements name aweigh in their first column.
    lines = re.findall(r"^\s*(?:\w+=\S+ )*(aweigh (?:[a-z]|--).*)$", script, flags=re.MULTILINE)
    sentences = re.findall(r"(?<!`)`(?:\w+=\S+ )?(aweigh (?:[a-z]|--)[^`]*)`", prose)
    found = [(line.split("#")[0].split(" > ")[0], False) for line in lines] + [(text, True) for text in sentences]
    for name, value in variables.items():
        found = [(re.sub(rf"\$\{{?{name}\b\}}?", value.replace("\\", ""), line), passing) for line, passing in found]
    return [(" ".join(line.split()), passing) for line, passing in found]

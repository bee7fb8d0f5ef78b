"""Pages that MkDocs makes while it builds the site: commands, fields and recipes, from the code itself.

They are generated, not written, so that a new command, field or recipe is documented by its own help text.
"""

import argparse
import sys
import typing
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# MkDocs imports this file by its path; the packages are beside docs/.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import recipes
from pipelines.cli import command_line
from pipelines.recipes.recipe import differences, field_help
from pipelines.recipes.settings import Recipe


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    for name, text in (
        ("reference/commands.md", commands_page()),
        ("reference/fields.md", fields_page()),
        ("reference/recipes.md", recipes_page()),
    ):
        files.append(File.generated(config, name, content=text))
    return files


def commands_page() -> str:
    """Describe every command and its arguments, from the parser that reads them."""
    parser = command_line()
    lines = [
        "# Commands",
        "",
        "Every command also prints this with `--help`. Results go to stdout and progress to stderr. The exit status is "
        "0 when the command is done, 1 when it failed, 2 when something you gave it cannot be used, and 130 after "
        "Ctrl-C. Commands that show `--field.subfield VALUE` accept any [field](fields.md) of the recipe.",
        "",
    ]
    for command in _leaves(parser):
        lines += [f"## {command.prog}", ""]
        if command.description or command.help:
            lines += [_sentence(command.description or command.help), ""]
        lines += ["```text", command.usage, "```", ""]
        if command.arguments:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| {name} | {_text(meaning)} |" for name, meaning in command.arguments]
            lines.append("")
    return "\n".join(lines)


def fields_page() -> str:
    """List every field of a recipe with its default and its meaning, section by section."""
    lines = [
        "# Fields",
        "",
        "A recipe is all of these fields. Set any of them as a flag, `--section.field VALUE`, or in a YAML file. "
        "`aweigh recipe show NAME` prints a recipe with every value, and `aweigh train --fields` prints this list. "
        "The last column says whether a resumed run may change the field; what decides the result may not change.",
        "",
    ]
    sections = groupby(field_help(), key=lambda row: row[0].rpartition(".")[0])
    for section, rows in sections:
        owner: Any = Recipe
        for part in filter(None, section.split(".")):
            owner = typing.get_type_hints(owner)[part]
        lines += [f"## {section or 'recipe'}", "", _text((owner.__doc__ or "").split("\n\n")[0]), ""]
        lines += ["| field | default | meaning | resumed run |", "|---|---|---|---|"]
        for name, default, meaning in rows:
            free = not differences({name: 0}, {name: 1})
            shown = f"`{default}`" if default else ""
            lines.append(f"| `{name}` | {shown} | {_text(meaning)} | {'may change' if free else 'keeps it'} |")
        lines.append("")
    return "\n".join(lines)


def recipes_page() -> str:
    """List every recipe with what decides its length and cost."""
    lines = [
        "# Recipes",
        "",
        "`aweigh train NAME` trains one; `aweigh recipe show NAME` prints all of its fields. "
        "[Train a published schedule](../how-to/schedules.md) says where the numbers come from.",
        "",
        "| recipe | purpose | detector | batch | learning rate | length |",
        "|---|---|---|---|---|---|",
    ]
    for name in recipes.names():
        recipe = recipes.get(name)
        schedule = recipe.schedule
        unit, end, drops = (
            ("steps", schedule.steps, schedule.drops_at_steps)
            if schedule.steps
            else ("epochs", schedule.epochs, schedule.drops_at)
        )
        length = f"{end:,} {unit}" + (f", lower after {', '.join(f'{drop:,}' for drop in drops)}" if drops else "")
        lines.append(
            f"| `{name}` | {_text(recipe.purpose)} | `{recipe.detector.name}` | {recipe.batch.global_size} "
            f"| {recipe.optimizer.learning_rate:g} | {length} |"
        )
    return "\n".join([*lines, ""])


class _Command:
    """One command that can be run, as its parser describes it."""

    def __init__(self, parser: argparse.ArgumentParser, help_line: str) -> None:
        self.prog = parser.prog
        self.help = help_line
        self.description = parser.description or ""
        takes_fields = bool(parser.get_default("takes_fields"))
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        self.usage = usage + (" [--field.subfield VALUE …]" if takes_fields else "")
        self.arguments = [
            (_argument_name(action), action.help % vars(action) if action.help and "%(" in action.help else action.help)
            for action in parser._actions
            if action.dest != "help" and action.help != argparse.SUPPRESS
        ]


def _leaves(parser: argparse.ArgumentParser, help_line: str = "") -> Iterator[_Command]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield _Command(parser, help_line)
    for group in groups:
        helps = {choice.dest: choice.help or "" for choice in group._choices_actions}
        seen: set[int] = set()
        for name, child in group.choices.items():
            # A synonym shares its parser with the command that it stands for.
            if id(child) not in seen and (name in helps or not helps):
                seen.add(id(child))
                yield from _leaves(child, helps.get(name, ""))


def _argument_name(action: argparse.Action) -> str:
    metavar = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    values = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    if action.choices and not action.metavar:
        values = " or ".join(map(str, action.choices))
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    return f"`{', '.join(action.option_strings)}{f' {values}' if action.nargs != 0 else ''}`"


def _sentence(text: str) -> str:
    """Help of a command as a sentence."""
    line = _text(text)
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")


def _text(text: str | None) -> str:
    """One line that a table cell can hold."""
    line = " ".join((text or "").split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

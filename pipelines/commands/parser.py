"""A parser that answers every mistake with one line and a suggestion."""

import argparse
import re
from typing import Any, NoReturn

from pipelines.commands.synonyms import SYNONYMS
from pipelines.console import fail
from pipelines.hints import did_you_mean

# argparse's words, and ours.
_REWORDED = (
    (r"argument command: ", ""),
    (r"argument (\S+): expected one argument", r"\1 needs a value."),
    (r"argument (\S+): expected at least one argument", r"\1 needs one value or more."),
    (r"argument (\S+): expected (\d+) arguments", r"\1 needs \2 values."),
    (r"argument (\S+): invalid int value: (.*)", r"\1 is \2; it must be a whole number."),
    (r"argument (\S+): invalid float value: (.*)", r"\1 is \2; it must be a number."),
    (r"argument (\S+): ", r"\1: "),
)


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake, and the nearest word that would have been right."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        missing = message.replace("the following arguments are required: ", f"{self.prog} needs ")
        if missing != message:
            fail(f"{missing}; `{self.prog} --help` explains the arguments.")
        for pattern, words in _REWORDED:
            message, found = re.subn(f"^{pattern}", words, message)
            if found:
                break
        fail(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but let the command that received an unknown argument refuse it."""
        takes_fields = self.get_default("takes_fields")
        positionals = self._get_positional_actions()
        if takes_fields and positionals and args and re.match(r"--\w+\.", args[0]):
            # argparse would take the field's value for the positional argument.
            place = positionals[0].metavar or positionals[0].dest.upper()
            self.error(
                f"{self.prog} takes its argument first and fields after it: {self.prog} {place} --field.subfield VALUE"
            )
        known, rest = super().parse_known_args(args, namespace)
        if rest and not getattr(known, "takes_fields", False):
            option = rest[0].partition("=")[0]
            hint = did_you_mean(option, self._option_string_actions, f"`{self.prog} --help` lists them.", form="{}")
            self.error(f"unknown argument {rest[0]!r}; {hint}")
        return known, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        if action.dest == "command" and value in SYNONYMS:
            self.error(f"unknown command {value!r}; {SYNONYMS[str(value)]}")
        known = [str(choice) for choice in action.choices]
        what = action.option_strings[0] if action.option_strings else "command"
        hint = did_you_mean(str(value), known, f"known are {', '.join(known)}.")
        self.error(f"unknown {what} {value!r}; {hint}")

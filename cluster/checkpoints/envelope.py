"""The content of a checkpoint's `state.json`: step, score and writer, and the facts of whoever trains.

Unusual here: the file is one flat JSON object, so that it can be read by eye and by older versions. Files without a
version were written before there was one, and are read as version 0.
"""

import functools
import json
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from cluster.node_checks import code_digest

FACTS_VERSION = 1
"""Raise it when older versions of aweigh must not read new facts; a new field with a default needs no new number."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The facts of a checkpoint that do not depend on what is trained, and those that do."""

    step: int
    """Optimizer steps done."""
    score: float | None = None
    """Quality of the weights, if it was measured; more is better."""
    version: int = 0
    """Version of the facts; 0 for a checkpoint without one."""
    written_by: str = ""
    """Version of aweigh that wrote the checkpoint; empty for a checkpoint of version 0."""
    facts: dict[str, Any]
    """JSON values of the caller, by name."""

    @property
    def writer(self) -> str:
        """The version that wrote it, for messages."""
        return f"aweigh {self.written_by}" if self.written_by else "an aweigh without version"

    def to_json(self) -> str:
        """Return the text of `state.json`."""
        own = {"step": self.step, "score": self.score, "version": self.version, "written_by": self.written_by}
        return json.dumps({**self.facts, **own}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Envelope":
        """Read the text of `state.json`.

        Raises:
            ValueError, KeyError, TypeError: it is not the text of a checkpoint.
        """
        facts = dict(json.loads(text))
        score = facts.pop("score", None)
        return cls(
            step=int(facts.pop("step")),
            score=None if score is None else float(score),
            version=int(facts.pop("version", 0)),
            written_by=str(facts.pop("written_by", "")),
            facts=facts,
        )


@functools.cache
def aweigh_version() -> str:
    """Return this aweigh's version with a digest of its code; a job that brings its own code has no version."""
    try:
        return f"{metadata.version('aweigh')} (code {code_digest()})"
    except metadata.PackageNotFoundError:
        return f"code {code_digest()}"

"""Stages of a network: the parts of its trunk and neck that can be frozen, or learn at rates of their own."""

from collections.abc import Mapping

Stages = Mapping[str, tuple[str, ...]]
"""Stages by name, in the order in which they compute, each with the paths of its modules."""


def within(owner: str, stages: Stages) -> dict[str, tuple[str, ...]]:
    """Return stages whose modules are inside a module at the path `owner`."""
    return {stage: tuple(f"{owner}.{path}" for path in paths) for stage, paths in stages.items()}

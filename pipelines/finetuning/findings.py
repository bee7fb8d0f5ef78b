"""The doctor's findings that somebody should see before a training, and those that are only counted."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data_shards.checking.findings import KINDS, Finding

# Beside all that are `wrong`: labels that may not fit their images, lost labels, and classes that cannot be learnt.
_SERIOUS_CHECKS = ("exif", "dropped", "class_without_objects", "dark_16_bit", "partly_outside")
# Others, if they concern this part of the images: an input or a stride that does not suit the data.
_SERIOUS_SHARE = 0.05
_EXAMPLES = 3


@dataclass(frozen=True)
class Findings:
    """The findings of an examination, in words."""

    serious: tuple[str, ...]
    """A line for each kind: how many, of what, where, and what to do."""
    lesser: int
    """Number of the other findings."""


def sort_findings(findings: Sequence[Finding], images: int) -> Findings:
    """Divide findings into serious and lesser ones.

    Args:
        findings: of an examination.
        images: in all examined splits.
    """
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for item in findings:
        by_kind[item.kind].append(item)
    serious: list[str] = []
    lesser = 0
    for kind in KINDS.values():
        found = by_kind.get(kind.name, [])
        concerned = len({sample for item in found for sample in item.samples})
        common = kind.level == "check" and concerned > _SERIOUS_SHARE * images
        if found and (kind.level == "wrong" or kind.name in _SERIOUS_CHECKS or common):
            examples = _examples(found, 1 if common and kind.name not in _SERIOUS_CHECKS else _EXAMPLES)
            serious.append(f"{kind.title} ({len(found):,}): {examples}. → {kind.fix}")
        else:
            lesser += len(found)
    return Findings(tuple(serious), lesser)


def _examples(found: Sequence[Finding], most: int) -> str:
    shown = [_where(item) for item in found[:most]]
    more = f"; and {len(found) - most:,} more" if len(found) > most else ""
    return "; ".join(shown) + more


def _where(item: Finding) -> str:
    names = [sample.seen_from(item.split).rpartition(" (")[0] for sample in item.samples[:_EXAMPLES]]
    more = len(item.samples) - _EXAMPLES
    text = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return f"{text} ({item.text})" if text else f"{item.split}, {item.text}"

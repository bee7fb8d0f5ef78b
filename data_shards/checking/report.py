"""The doctor's report, as text for people and as JSON for scripts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_shards.checking.findings import KINDS, Finding
from data_shards.checking.statistics import Numbers
from data_shards.counting import counted

_MOST_CLASSES = 25
_MOST_SAMPLES = 4
_INDENT = 17 * " "


@dataclass
class Examination:
    """Everything that was counted and found in a data set."""

    location: str
    against: str | None
    stride: int
    input_size: tuple[int, int]
    numbers: dict[str, Numbers]
    """By location."""
    findings: list[Finding]

    def describe(self, examples: int = 3) -> str:
        """Write the report as plain text: numbers, histograms, and the findings, worst first.

        Args:
            examples: findings of each kind that are shown; the others are counted.
        """
        lines: list[str] = []
        for location, numbers in self.numbers.items():
            lines += [*_numbers(location, numbers, self.input_size), ""]
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for item in self.findings:
            by_kind[item.kind].append(item)
        if not by_kind:
            lines.append("nothing was found")
        for level in ("wrong", "check", "note"):
            for kind in (kind for kind in KINDS.values() if kind.level == level and by_kind[kind.name]):
                found = by_kind[kind.name]
                lines.append(f"{level.upper():<8}{len(found):>7,}  {kind.title}")
                lines += [f"{_INDENT}{_where(item)}: {item.text}" for item in found[:examples]]
                if len(found) > examples:
                    lines.append(f"{_INDENT}… {len(found) - examples:,} more, all in --json")
                lines.append(f"{_INDENT}→ {kind.fix}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "location": self.location,
            "against": self.against,
            "stride": self.stride,
            "input_size": list(self.input_size),
            "numbers": {location: vars(numbers) for location, numbers in self.numbers.items()},
            "findings": [
                {
                    "kind": item.kind,
                    "level": KINDS[item.kind].level,
                    "split": item.split,
                    "samples": [asdict(sample) for sample in item.samples],
                    "text": item.text,
                    "fix": KINDS[item.kind].fix,
                }
                for item in self.findings
            ],
        }


def _where(item: Finding) -> str:
    names = ", ".join(sample.seen_from(item.split) for sample in item.samples[:_MOST_SAMPLES])
    hidden = len(item.samples) - _MOST_SAMPLES
    more = f" and {hidden:,} more" if hidden > 0 else ""
    return f"{item.split}  {names}{more}" if names else item.split


def _numbers(location: str, numbers: Numbers, input_size: tuple[int, int]) -> list[str]:
    sizes = list(numbers.image_sizes.items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:4])
    more = f" and {len(sizes) - 4:,} other sizes" if len(sizes) > 4 else ""
    small, medium, large = numbers.coco_sizes.values()
    cells = ", ".join(f"{stride}: {count:,}" for stride, count in numbers.same_cell.items())
    bare = counted(numbers.objects_without_joints, "object")
    joints = [f"joints        {numbers.joints:,} labelled; {bare} without any, trained on without joints"]
    return [
        f"{location}: {counted(numbers.images, 'image')}, {counted(numbers.objects, 'object')} and "
        f"{counted(numbers.crowds, 'crowd')} of {counted(len(numbers.objects_of_class), 'class')}",
        f"images        {shown}{more}",
        f"object sizes  {small:,} small, {medium:,} medium, {large:,} large (COCO: area below 32², below 96², above)",
        f"shared cells  stride {cells}",
        f"              objects in one cell with another of their class, at input {input_size[0]} x {input_size[1]}",
        *(joints if numbers.joints else ()),
        "",
        *_bars("object size, √area in pixels", numbers.object_sizes.items()),
        "",
        *_bars("objects per image", numbers.objects_per_image.items()),
        "",
        *_bars("objects per class", *_classes(numbers)),
    ]


def _classes(numbers: Numbers) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the objects of the most and, if there are many classes, the least frequent ones, with a note on each."""
    rows = sorted(numbers.objects_of_class.items(), key=lambda item: -item[1])
    notes = [f"in {counted(numbers.images_of_class[name], 'image')}" for name, _ in rows]
    if len(rows) <= _MOST_CLASSES:
        return rows, notes
    hidden = rows[_MOST_CLASSES - 5 : -5]
    between = (f"… {len(hidden)} more classes", sum(count for _, count in hidden))
    shown = [*rows[: _MOST_CLASSES - 5], between, *rows[-5:]]
    return shown, [*notes[: _MOST_CLASSES - 5], "each in --json", *notes[-5:]]


def _bars(title: str, counts: Iterable[tuple[str, int]], notes: Sequence[str] = ()) -> list[str]:
    rows = list(counts)
    if not rows:
        return [title, "  none"]
    # The row that sums up hidden classes would dwarf the others, so it has no bar.
    most = max(1, *(count for name, count in rows if not name.startswith("…")))
    width = max(len(name) for name, _ in rows)
    lines = [title]
    for index, (name, count) in enumerate(rows):
        bar = "" if name.startswith("…") else "█" * round(30 * count / most) or "▏" * bool(count)
        lines.append(f"  {name:<{width}} {count:>9,}  {bar:<30}  {notes[index] if notes else ''}".rstrip())
    return lines

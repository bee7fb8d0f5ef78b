"""What the doctor may find in a data set: each kind with why it matters and what to do about it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data_shards.counting import counted

_MOST_CLASSES = 25

Level = Literal["wrong", "look", "note"]
"""`wrong` costs accuracy or misleads the AP, `look` may, `note` is handled and only said."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    name: str
    level: Level
    title: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """One finding; `keys` are samples of `split`, those of another split are written `split/key`."""

    kind: str
    split: str
    keys: tuple[str, ...]
    text: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "undecodable",
            "wrong",
            "images that do not decode",
            "copy or export the file again and build the shards again",
        ),
        Kind(
            "same_bytes_across_splits",
            "wrong",
            "images of the other split, byte for byte",
            "remove them from one split: an AP on images that were trained on says nothing",
        ),
        Kind(
            "same_picture_across_splits",
            "wrong",
            "pictures of the other split in other bytes",
            "look at the pair; if it is one scene, keep it in one split only",
        ),
        Kind("same_bytes", "wrong", "images that are there more than once", "keep one, with the annotations of all"),
        Kind(
            "same_picture",
            "look",
            "pictures that are there more than once in other bytes",
            "look at the pair; keep one if it is the same picture, recompressed or resized",
        ),
        Kind(
            "classes_differ",
            "wrong",
            "classes of the two splits differ",
            "export both splits with one list of classes; training refuses them as they are",
        ),
        Kind("no_area", "wrong", "boxes without width or height", "correct them; building drops them by default"),
        Kind("outside", "wrong", "boxes that touch no pixel of their image", "correct them; building drops them"),
        Kind(
            "dropped",
            "look",
            "boxes that building dropped (no area, or outside their image)",
            "`aweigh shards build --degenerate-boxes refuse` names them; correct the annotations",
        ),
        Kind(
            "partly_outside",
            "look",
            "boxes that reach out of their image by more than a pixel",
            "check that boxes and image have one size and orientation; targets use the part inside",
        ),
        Kind(
            "same_box",
            "look",
            "objects that seem to be drawn twice: one class, IoU of 0.9 or more",
            "draw the sample with --key of aweigh shards show; remove one if so: it is never found and lowers the AP",
        ),
        Kind(
            "joints_outside",
            "wrong",
            "labelled joints out of their image",
            "correct them, or set their visibility to 0; targets leave them out",
        ),
        Kind(
            "joints_off_box",
            "look",
            "labelled joints far from the box of their object",
            "draw the sample with --key of aweigh shards show; the box or the joint belongs to another object",
        ),
        Kind(
            "exif",
            "look",
            "images that EXIF turns",
            "draw the sample with --key of aweigh shards show; boxes belong on the upright image. If they are off, "
            "store the pixels upright, without the tag",
        ),
        Kind("gray", "note", "gray images", "none needed: they are read as three equal channels"),
        Kind("cmyk", "look", "CMYK images", "look at their colours; convert them to RGB if they are off"),
        Kind(
            "below_stride",
            "look",
            "objects smaller than a cell",
            "a larger data.input_size, a smaller stride, or crops of the images",
        ),
        Kind(
            "same_cell",
            "look",
            "objects of one class whose centres fall into one cell",
            "a larger data.input_size or a smaller stride: one cell can find one object of a class",
        ),
        Kind(
            "too_many",
            "wrong",
            "images with more objects than data.max_objects",
            "raise data.max_objects and CenterNet's detector.settings.max_objects: what comes later is not trained on",
        ),
        Kind("crowd", "note", "images with crowds", "none needed: trained on as boxes, ignored by the AP as COCO does"),
        Kind(
            "no_objects",
            "note",
            "images without objects",
            "none needed if nothing is on them; they teach what is background",
        ),
        Kind(
            "class_without_objects",
            "look",
            "classes without a single object",
            "remove the class, or add examples; it has no AP and takes a channel",
        ),
        Kind(
            "class_names",
            "wrong",
            "classes of one name",
            "rename one, or merge them in the annotations: figures by class would show only one of them",
        ),
        Kind(
            "class_ids", "note", "gaps in the class ids", "none needed: labels count the classes in order of their ids"
        ),
    )
}


@dataclass
class Numbers:
    """Counts of a split, and its histograms."""

    images: int = 0
    objects: int = 0
    crowds: int = 0
    objects_of_class: dict[str, int] = field(default_factory=dict)
    images_of_class: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    """Images by `width x height`, the most frequent first."""
    object_sizes: dict[str, int] = field(default_factory=dict)
    """Objects by the square root of their area, in image pixels, in octaves."""
    coco_sizes: dict[str, int] = field(default_factory=dict)
    """Objects that are small, medium and large for COCO: area below 32², 96², and above."""
    objects_per_image: dict[str, int] = field(default_factory=dict)
    same_cell: dict[int, int] = field(default_factory=dict)
    """Objects of one class that share their cell with another, by stride, in the input frame."""
    joints: int = 0
    """Labelled ones, of objects that are no crowds."""
    objects_without_joints: int = 0
    """Objects that are no crowds, in data with joints, of which none is labelled."""


@dataclass
class Examination:
    """What was found in a data set."""

    location: str
    against: str | None
    stride: int
    input_size: tuple[int, int]
    numbers: dict[str, Numbers]
    """By location."""
    findings: list[Finding]

    @property
    def num_wrong(self) -> int:
        """Findings that cost accuracy or mislead the AP."""
        return sum(KINDS[item.kind].level == "wrong" for item in self.findings)

    def describe(self, examples: int = 3) -> str:
        """The report, plain text: numbers, histograms, then what was found, worst first."""
        lines: list[str] = []
        for location, numbers in self.numbers.items():
            lines += [*_numbers(location, numbers, self), ""]
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for item in self.findings:
            by_kind[item.kind].append(item)
        if not by_kind:
            lines.append("nothing was found")
        for level, title in (("wrong", "WRONG"), ("look", "LOOK AT"), ("note", "NOTED")):
            for kind in (kind for kind in KINDS.values() if kind.level == level and by_kind[kind.name]):
                found = by_kind[kind.name]
                lines.append(f"{title:<8}{len(found):>7,}  {kind.title}")
                lines += [f"{'':17}{_keys(item)}{item.text}" for item in found[:examples]]
                if len(found) > examples:
                    lines.append(f"{'':17}… {len(found) - examples:,} more, all in --json")
                lines.append(f"{'':17}→ {kind.fix}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
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
                    "keys": list(item.keys),
                    "text": item.text,
                    "fix": KINDS[item.kind].fix,
                }
                for item in self.findings
            ],
        }


def _keys(item: Finding) -> str:
    shown = ", ".join(item.keys[:4]) + (f" and {len(item.keys) - 4:,} more" if len(item.keys) > 4 else "")
    return f"{item.split}  {shown}: " if item.keys else f"{item.split}: "


def _numbers(location: str, numbers: Numbers, examination: Examination) -> list[str]:
    sizes = list(numbers.image_sizes.items())
    shown = ", ".join(f"{size} ({count:,})" for size, count in sizes[:4])
    more = f" and {len(sizes) - 4:,} other sizes" if len(sizes) > 4 else ""
    small, medium, large = numbers.coco_sizes.values()
    cells = ", ".join(f"{count:,} at stride {stride}" for stride, count in numbers.same_cell.items())
    height, width = examination.input_size
    joints = []
    if numbers.joints:
        joints.append(
            f"joints        {numbers.joints:,} labelled; {counted(numbers.objects_without_joints, 'object')} without "
            "any: found as centres, no joint is learnt from them"
        )
    return [
        f"{location}: {counted(numbers.images, 'image')}, {counted(numbers.objects, 'object')} and "
        f"{counted(numbers.crowds, 'crowd')} of {counted(len(numbers.objects_of_class), 'class')}",
        f"images        {shown}{more}",
        f"object sizes  {small:,} small, {medium:,} medium, {large:,} large (box area, at COCO's 32² and 96² pixels)",
        f"one cell      objects that share theirs with another of their class, at input {height} x {width}: {cells}",
        *joints,
        "",
        *_bars("side of an object, √area in pixels", numbers.object_sizes.items()),
        "",
        *_bars("objects in an image", numbers.objects_per_image.items()),
        "",
        *_bars("objects of a class", *_classes(numbers)),
    ]


def _classes(numbers: Numbers) -> tuple[list[tuple[str, int]], list[str]]:
    """The classes with the most and, where there are many, with the fewest objects; and in how many images each is."""
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
    most = max(1, *(count for name, count in rows if not name.startswith("…")))
    width = max(len(name) for name, _ in rows)
    lines = [title]
    for index, (name, count) in enumerate(rows):
        bar = "" if name.startswith("…") else "█" * round(30 * count / most) or "▏" * bool(count)
        lines.append(f"  {name:<{width}} {count:>9,}  {bar:<30}  {notes[index] if notes else ''}".rstrip())
    return lines

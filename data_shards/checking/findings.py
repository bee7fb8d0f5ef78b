"""The findings of the doctor: each kind with its weight and its remedy."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["wrong", "check", "note"]
"""`wrong` costs accuracy or misleads the AP, `check` may do so, `note` is handled and only worth knowing."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    name: str
    level: Level
    title: str
    fix: str


@dataclass(frozen=True, slots=True)
class SampleName:
    """The names of a sample: what a person opens, and what `aweigh shards show --key` takes."""

    split: str
    key: str
    file_name: str
    """Of the image, as in the annotation file."""

    def seen_from(self, split: str) -> str:
        """Write `file_name (key)`, with the split in front if it is not the one that is reported on."""
        return f"{'' if split == self.split else f'{self.split}/'}{self.file_name} ({self.key})"


@dataclass(frozen=True)
class Finding:
    """One finding in a split, and the samples that it is about; none if it is about classes."""

    kind: str
    split: str
    samples: tuple[SampleName, ...]
    text: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "undecodable",
            "wrong",
            "images that do not decode",
            "export or copy the file again, then build the shards again",
        ),
        Kind(
            "same_bytes_across_splits",
            "wrong",
            "images that the other split has too, byte for byte",
            "remove them from one split: an AP on training images says nothing",
        ),
        Kind(
            "same_picture_across_splits",
            "wrong",
            "images that the other split has too, recompressed or resized",
            "compare each pair; keep a scene in one split only",
        ),
        Kind("same_bytes", "wrong", "duplicate images, byte for byte", "keep one, with the annotations of all"),
        Kind(
            "same_picture",
            "check",
            "duplicate images, recompressed or resized",
            "compare each pair; if it is one picture, keep one of the files",
        ),
        Kind(
            "classes_differ",
            "wrong",
            "classes that differ between the splits",
            "build one of them again with `--classes-from` the other; training refuses them as they are",
        ),
        Kind(
            "no_area",
            "wrong",
            "boxes without width or height",
            "correct them; building drops them by default",
        ),
        Kind(
            "outside",
            "wrong",
            "boxes wholly outside their image",
            "correct them; building drops them by default",
        ),
        Kind(
            "dropped",
            "check",
            "images with boxes that building dropped (no area, or outside)",
            "correct the annotations; `aweigh shards build --degenerate-boxes refuse` names them",
        ),
        Kind(
            "partly_outside",
            "check",
            "boxes that reach more than a pixel out of their image",
            "check that they were drawn at this size and orientation; training uses the part inside",
        ),
        Kind(
            "same_box",
            "check",
            "objects that seem to be annotated twice (one class, IoU 0.9 or more)",
            "look with `aweigh shards show --key`; remove a double: it is never found and lowers the AP",
        ),
        Kind(
            "joints_outside",
            "wrong",
            "labelled joints outside their image",
            "correct them, or set their visibility to 0; training leaves them out",
        ),
        Kind(
            "joints_off_box",
            "check",
            "labelled joints far from their object's box",
            "look with `aweigh shards show --key`; the box or the joint may belong to another object",
        ),
        Kind(
            "exif",
            "check",
            "images that their EXIF tag turns or mirrors",
            "look with `aweigh shards show --key`; if the boxes do not fit the upright image, store it upright "
            "without the tag",
        ),
        Kind(
            "dark_16_bit",
            "wrong",
            "16-bit images that decode to black or nearly so",
            "scale their values to the full range and store them with 8 bits, all images alike",
        ),
        Kind(
            "sixteen_bit",
            "note",
            "16-bit images, of which training uses the upper 8 bits",
            "nothing to do if they look right; otherwise scale their values and store them with 8 bits",
        ),
        Kind(
            "transparent",
            "check",
            "images with transparent pixels, whose hidden colours training sees",
            "look with `aweigh shards show --key`; if hidden colours appear, draw the images on a plain background",
        ),
        Kind("gray", "note", "gray images", "nothing to do: they are read as three equal channels"),
        Kind("cmyk", "check", "CMYK images", "look at their colours; if they are wrong, convert the files to RGB"),
        Kind(
            "below_stride",
            "check",
            "objects smaller than a cell of the output",
            "raise data.input_size, choose a smaller stride, or cut the images into crops",
        ),
        Kind(
            "same_cell",
            "check",
            "objects of one class whose centres share a cell",
            "raise data.input_size or choose a smaller stride: a cell finds one object of a class",
        ),
        Kind(
            "too_many",
            "wrong",
            "images with more objects than data.max_objects",
            "raise data.max_objects and CenterNet's detector.settings.max_objects: the rest is not trained on",
        ),
        Kind(
            "crowd",
            "note",
            "images with crowds",
            "nothing to do: they are trained on as boxes, and the AP ignores them as in COCO",
        ),
        Kind(
            "no_objects",
            "note",
            "images without objects",
            "nothing to do if they really are empty: they teach the background",
        ),
        Kind(
            "class_without_objects",
            "check",
            "classes without a single object",
            "remove the class or add examples; it has no AP and takes up a channel",
        ),
        Kind(
            "class_names",
            "wrong",
            "classes that share a name",
            "rename one, or merge them in the annotations: figures by class would show only one of them",
        ),
        Kind(
            "class_ids",
            "note",
            "gaps in the class ids",
            "nothing to do: labels count the classes in the order of their ids",
        ),
    )
}

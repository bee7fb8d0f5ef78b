"""The data set doctor: reads every image and every box of a data set, and reports what would spoil training.

Everything comes from the indexes and the samples, shard by shard in threads. Memory holds the findings, and for every
image its name and a fingerprint of 300 bytes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from data_shards.checking.box_checks import box_findings, boxes_in_input, groups_in_one_cell, joint_findings
from data_shards.checking.duplicates import Fingerprint, fingerprint, same_bytes, same_picture
from data_shards.checking.findings import Finding, SampleName
from data_shards.checking.report import Examination
from data_shards.checking.statistics import Numbers, class_titles, count_split
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, Manifest, sample_key
from data_shards.format.shard_index import ShardIndex
from data_shards.reading.decode import colour_space, decode_jpeg, exif_orientation, png_depth
from data_shards.reading.shards import Shards
from data_shards.reading.split import DataSplit, open_split

STRIDES = (4, 8, 16, 32, 64, 128)
"""Strides at which shared cells are counted, whichever detector is trained."""

# The brightest value of a 16-bit image, after decoding to 8 bits, below which it is black or nearly so.
_LEAST_BRIGHTNESS = 64

# EXIF orientations, by what a reader has to do to the stored pixels.
_TURNED = {
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored and turned",
    6: "turned by 90°",
    7: "mirrored and turned",
    8: "turned by 270°",
}


@dataclass(frozen=True)
class _Split:
    """One data set to examine."""

    location: str
    name: str
    opened: DataSplit

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.opened.manifest


@dataclass(frozen=True)
class _Judgement:
    """Settings by which boxes are judged."""

    stride: int
    input_size: tuple[int, int]
    max_objects: int


@dataclass(frozen=True)
class _Examined:
    """The result of one shard."""

    findings: list[Finding]
    prints: list[tuple[SampleName, Fingerprint]]
    same_cell: Counter[int]


def examine(
    location: str,
    *,
    against: str | None = None,
    stride: int = 4,
    input_size: tuple[int, int] = (512, 512),
    max_objects: int = 128,
    threads: int = 2,
    cache_bytes: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Examination:
    """Examine a split, and find the images that it shares with another.

    Args:
        location: the folder or S3 prefix with the manifest.
        against: another split, which is examined the same way; images that are in both are found.
        stride: of the detector's finest output, in input pixels.
        input_size: height and width of the training input.
        max_objects: the value that `data.max_objects` will have.
        threads: number of shards that are read at the same time.
        cache_bytes: space for shards from S3; 0 for no limit.
        progress: called with the number of images done and the number of all images, after each shard.

    Returns:
        Counts and findings of both splits.

    Raises:
        DataError: there are no shards at a location, or a shard does not match its manifest.
    """
    _check_settings(location, against, stride, input_size, max_objects, threads)
    judgement = _Judgement(stride, input_size, max_objects)
    splits = _open([location] if against is None else [location, against], cache_bytes)
    total, done = sum(split.manifest.num_samples for split in splits), 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        progress(done, total)

    findings: list[Finding] = []
    prints: list[tuple[SampleName, Fingerprint]] = []
    numbers: dict[str, Numbers] = {}
    for split in splits:
        examined, numbers[split.location] = _examine_split(split, judgement, threads, advance)
        findings += examined.findings
        prints += examined.prints
    if against is not None:
        findings += _differing_classes(splits[0].manifest.classes, splits[1].manifest.classes, against)
    findings += _duplicates(prints)
    return Examination(location, against, stride, input_size, numbers, findings)


def _check_settings(
    location: str, against: str | None, stride: int, input_size: tuple[int, int], max_objects: int, threads: int
) -> None:
    for name, value in (
        ("stride", stride),
        ("max_objects", max_objects),
        ("threads", threads),
        ("the input's height", input_size[0]),
        ("the input's width", input_size[1]),
    ):
        if value < 1:
            raise DataError(f"{name} is {value}; set it to 1 or more.")
    if against is not None and against.rstrip("/") == location.rstrip("/"):
        raise DataError(f"--against is {location} itself; give another split.")


def _open(locations: list[str], cache_bytes: int) -> list[_Split]:
    splits = [open_split(location, cache_bytes=cache_bytes) for location in locations]
    names = [split.manifest.split for split in splits]
    # Two sets may both be called train; then their locations tell them apart.
    if len(set(names)) < len(names):
        names = locations
    return [_Split(*of_split) for of_split in zip(locations, names, splits, strict=True)]


def _examine_split(
    split: _Split, judgement: _Judgement, threads: int, advance: Callable[[int], None]
) -> tuple[_Examined, Numbers]:
    findings: list[Finding] = []
    prints: list[tuple[SampleName, Fingerprint]] = []
    same_cell: Counter[int] = Counter()
    records = split.manifest.shards
    shards = split.opened.shards()
    pool = ThreadPoolExecutor(threads)
    try:
        work = [pool.submit(_examine_shard, shards, shard, split.name, judgement) for shard in range(len(records))]
        for record, future in zip(records, work, strict=True):
            examined = future.result()
            findings += examined.findings
            prints += examined.prints
            same_cell += examined.same_cell
            advance(record.samples)
    finally:
        # After an error or Ctrl-C, shards that have not begun are given up.
        pool.shutdown(cancel_futures=True)
        shards.close()
    indexes = [shards.index(shard) for shard in range(len(records))]
    # A Counter that was added to drops its zeros; the report lists every stride.
    numbers = count_split(split.manifest, indexes, {stride: same_cell[stride] for stride in STRIDES})
    findings += _class_findings(split.name, split.manifest, numbers)
    return _Examined(findings, prints, same_cell), numbers


def _examine_shard(shards: Shards, shard: int, split: str, judgement: _Judgement) -> _Examined:
    index = shards.index(shard)
    examined = _Examined([], [], Counter())
    for row in range(len(index)):
        name = SampleName(split, sample_key(int(index.image_ids[row])), shards.read_json(shard, row)["file_name"])
        data = shards.read_image(shard, row)
        found = _image_findings(data)
        try:
            examined.prints.append((name, fingerprint(data, decode_jpeg(data))))
        except ValueError as error:
            found.append(("undecodable", str(error)))
        found += _label_findings(index, row, judgement, examined.same_cell)
        examined.findings.extend(Finding(kind, split, (name,), text) for kind, text in found)
    return examined


def _image_findings(data: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if (orientation := exif_orientation(data)) != 1:
        found.append(("exif", f"orientation {orientation}, {_TURNED[orientation]} on reading"))
    try:
        space = colour_space(data)
    except ValueError:
        return found  # reported as undecodable
    if space != "RGB":
        found.append((space.lower(), f"stored as {space}"))
    return found + _hidden_findings(data)


def _hidden_findings(data: bytes) -> list[tuple[str, str]]:
    """Find what a viewer does not show: colours under transparency, and 16 bits of which 8 are used."""
    bits, has_alpha = png_depth(data)
    if bits != 16 and not has_alpha:
        return []
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return []  # reported as undecodable
    found: list[tuple[str, str]] = []
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels, alpha = pixels[..., :3], pixels[..., 3]
        if share := float((alpha < np.iinfo(alpha.dtype).max).mean()):
            found.append(("transparent", f"{share:.0%} of its pixels are transparent"))
    if pixels.dtype == np.uint16:
        # Decoding keeps the upper 8 of 16 bits.
        most = int(pixels.max())
        text = f"16-bit values up to {most:,} of 65,535, which training sees as 0 to {most >> 8} of 255"
        found.append(("dark_16_bit" if most >> 8 < _LEAST_BRIGHTNESS else "sixteen_bit", text))
    return found


def _label_findings(
    index: ShardIndex, row: int, judgement: _Judgement, same_cell: Counter[int]
) -> list[tuple[str, str]]:
    """Judge the labels of one image, and add its objects in shared cells to the counts."""
    first, last = index.row_splits[row : row + 2]
    labels, boxes = index.labels[first:last], index.boxes[first:last]
    # Ignored boxes are judged like crowds: no object has to be found there.
    iscrowd = index.iscrowd[first:last] | (labels < 0)
    size = int(index.heights[row]), int(index.widths[row])
    found = box_findings(
        boxes,
        labels,
        iscrowd,
        size,
        stride=judgement.stride,
        input_size=judgement.input_size,
        max_objects=judgement.max_objects,
    )
    if index.keypoints is not None:
        found += joint_findings(index.keypoints[first:last], boxes, size)
    if index.dropped_boxes is not None and (dropped := int(index.dropped_boxes[row])):
        found.append(("dropped", counted(dropped, "box")))
    in_input = boxes_in_input(boxes[~iscrowd], size, judgement.input_size)
    for stride in STRIDES:
        same_cell[stride] += sum(map(len, groups_in_one_cell(in_input, labels[~iscrowd], stride)))
    return found


def _class_findings(split: str, manifest: Manifest, numbers: Numbers) -> list[Finding]:
    return [
        Finding(kind, split, (), text)
        for kind, texts in (
            ("class_without_objects", _unused_classes(manifest, numbers)),
            ("class_names", _shared_names(manifest.classes)),
            ("class_ids", _gaps([item.id for item in manifest.classes])),
        )
        for text in texts
    ]


def _unused_classes(manifest: Manifest, numbers: Numbers) -> list[str]:
    return [
        f"class {item.id} {item.name!r}"
        for item, title in zip(manifest.classes, class_titles(manifest), strict=True)
        if not numbers.objects_of_class[title]
    ]


def _shared_names(classes: Sequence[CocoClass]) -> list[str]:
    ids_of_name: dict[str, list[int]] = {}
    for item in classes:
        ids_of_name.setdefault(item.name, []).append(item.id)
    return [
        f"{name!r} is the name of classes {', '.join(map(str, ids))}"
        for name, ids in ids_of_name.items()
        if len(ids) > 1
    ]


def _gaps(ids: Sequence[int]) -> list[str]:
    # Ids usually start at 0 or 1; neither is a gap.
    missing = [number for number in range(min(ids[0], 1), ids[-1]) if number not in set(ids)]
    if not missing:
        return []
    shown = ", ".join(map(str, missing[:12])) + (", …" if len(missing) > 12 else "")
    return [f"{counted(len(ids), 'class')} with ids {ids[0]} to {ids[-1]}, without {shown}"]


def _differing_classes(ours: Sequence[CocoClass], theirs: Sequence[CocoClass], against: str) -> list[Finding]:
    if ours == theirs:
        return []
    parts = [
        f"{what} {', '.join(_class_title(item, others) for item in items[:6])}" + (", …" if len(items) > 6 else "")
        for what, items, others in (
            ("it lacks", [item for item in ours if item not in theirs], theirs),
            ("it adds", [item for item in theirs if item not in ours], ours),
        )
        if items
    ]
    return [Finding("classes_differ", against, (), "; ".join(parts))]


def _class_title(item: CocoClass, others: Sequence[CocoClass]) -> str:
    title = f"{item.id} {item.name!r}"
    # Otherwise a class that differs in its joints only would look the same on both sides.
    alike = any((item.id, item.name) == (other.id, other.name) for other in others)
    return f"{title} with joints {', '.join(item.keypoints) or 'none'}" if alike else title


def _duplicates(prints: Sequence[tuple[SampleName, Fingerprint]]) -> list[Finding]:
    names, fingerprints = [name for name, _ in prints], [item for _, item in prints]
    found: list[Finding] = []
    for kind, groups, text in (
        ("same_bytes", same_bytes(fingerprints), "the same bytes"),
        ("same_picture", same_picture(fingerprints), "the same picture"),
    ):
        for group in groups:
            samples = tuple(names[index] for index in group)
            across = "_across_splits" if len({sample.split for sample in samples}) > 1 else ""
            found.append(Finding(f"{kind}{across}", samples[0].split, samples, text))
    return found

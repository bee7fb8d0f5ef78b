"""The data set doctor: reads every image and every box of shards, and says what would spoil a training.

Everything comes from the index and the image bytes, shard by shard in threads; what stays in memory is a fingerprint
of 300 bytes an image and the findings. Boxes are judged in the image frame, sizes against a stride in the input frame:
the longer side of the image fills the input, as in the publication's middle scale.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.checking.duplicates import Fingerprint, fingerprint, same_bytes, same_picture
from data_shards.checking.findings import Examination, Finding, Numbers
from data_shards.counting import counted
from data_shards.errors import DataError
from data_shards.format.manifest import CocoClass, Manifest, load_manifest, sample_key
from data_shards.format.shard_index import ShardIndex
from data_shards.reading.decode import colour_space, decode_jpeg, exif_orientation
from data_shards.reading.geometry import crop_matrix, transform_boxes
from data_shards.reading.shards import Shards
from data_shards.storage.open import open_store

_SAME_OBJECT = 0.9
"""IoU of two boxes of one class from which they are taken for one object, drawn twice."""

STRIDES = (4, 8, 16, 32, 64, 128)
_TURNED = {
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored and turned",
    6: "turned by 90°",
    7: "mirrored and turned",
    8: "turned by 270°",
}

Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class _Setting:
    """How sizes are judged."""

    stride: int
    input_size: tuple[int, int]
    max_objects: int


@dataclass(frozen=True)
class _Examined:
    """One shard."""

    findings: list[Finding]
    prints: list[tuple[str, Fingerprint]]
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
    """Examine a split, and what it shares with another.

    Args:
        location: where the manifest lies.
        against: another split, examined the same way; images that stand in both are found.
        stride: of the detector's finest output, in input pixels.
        input_size: height and width of the training input.
        max_objects: what `data.max_objects` will be.
        threads: so many shards at the same time.
        cache_bytes: how many bytes of shards from S3 are kept; 0 for no limit.
        progress: called with images done and images in all, after each shard.

    Raises:
        DataError: a location holds no shards, or a shard is not what its manifest says.
    """
    for name, value in (("stride", stride), ("max_objects", max_objects), ("threads", threads), *_named(input_size)):
        if value < 1:
            raise DataError(f"{name} is {value}; set it to 1 or more.")
    if against is not None and against.rstrip("/") == location.rstrip("/"):
        raise DataError(f"--against is {location} itself; give another split.")
    setting = _Setting(stride, input_size, max_objects)
    places = [location] if against is None else [location, against]
    manifests = [load_manifest(place) for place in places]
    total, done = sum(manifest.num_samples for manifest in manifests), 0
    findings: list[Finding] = []
    numbers: dict[str, Numbers] = {}
    prints: list[tuple[str, str, Fingerprint]] = []
    for place, manifest, split in zip(places, manifests, _split_names(places, manifests), strict=True):
        shards = Shards(open_store(place), manifest, cache_bytes=cache_bytes)
        same_cell: Counter[int] = Counter()
        pool = ThreadPoolExecutor(threads)
        try:
            work = [pool.submit(_examine_shard, shards, shard, split, setting) for shard in range(len(manifest.shards))]
            for shard, future in enumerate(work):
                examined = future.result()
                findings += examined.findings
                prints += [(split, key, item) for key, item in examined.prints]
                same_cell += examined.same_cell
                done += manifest.shards[shard].samples
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
            shards.close()
        indexes = [shards.index(shard) for shard in range(len(manifest.shards))]
        numbers[place] = _count(manifest, indexes, {each: same_cell[each] for each in STRIDES})
        findings += _class_findings(split, manifest, numbers[place])
    if against is not None:
        findings += _differing_classes(manifests[0].classes, manifests[1].classes, against)
    findings += _duplicates(prints)
    return Examination(location, against, stride, input_size, numbers, findings)


def box_findings(
    boxes: Boxes,
    labels: NDArray[np.int64],
    iscrowd: NDArray[np.bool_],
    size: tuple[int, int],
    *,
    stride: int,
    input_size: tuple[int, int],
    max_objects: int,
) -> list[tuple[str, str]]:
    """Kind and text of what is found in the boxes of one image.

    Args:
        boxes: `(objects, 4)` x1, y1, x2, y2 in the image frame.
        labels: `(objects,)`.
        iscrowd: `(objects,)`; crowds are not judged by size or cell.
        size: height and width of the image.
        stride: in input pixels.
        input_size: height and width of the input; the image's longer side fills its width.
        max_objects: more boxes than this are not trained on.
    """
    found: list[tuple[str, str]] = []
    height, width = size
    if not len(boxes):
        return [("no_objects", "no box")]
    if len(boxes) > max_objects:
        found.append(("too_many", f"{len(boxes):,} objects, {len(boxes) - max_objects:,} more than {max_objects:,}"))
    if iscrowd.any():
        found.append(("crowd", f"{int(iscrowd.sum()):,} of {counted(len(boxes), 'box')}"))
    x1, y1, x2, y2 = boxes.T
    no_area = (x2 <= x1) | (y2 <= y1)
    outside = ~no_area & ((x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0))
    beyond = np.maximum.reduce([-x1, -y1, x2 - width, y2 - height])
    for kind, rows in (("no_area", no_area), ("outside", outside), ("partly_outside", ~outside & (beyond > 1))):
        found += [(kind, f"box {_shown(boxes[row])} in {width} x {height} pixels") for row in np.flatnonzero(rows)]
    usable = np.flatnonzero(~no_area & ~outside & ~iscrowd)
    for one, other, overlap in _twice(boxes[usable], labels[usable]):
        text = f"boxes {_shown(boxes[usable[one]])} and {_shown(boxes[usable[other]])}, IoU {overlap:.2f}"
        found.append(("same_box", text))
    in_input = _in_input(boxes[usable], size, input_size)
    sides = np.minimum(in_input[:, 2] - in_input[:, 0], in_input[:, 3] - in_input[:, 1])
    for row, side in zip(usable, sides, strict=True):
        if side < stride:
            found.append(
                (
                    "below_stride",
                    f"box {_shown(boxes[row])} is {side:.1f} input pixels on its narrow side, a cell {stride}",
                )
            )
    for group in _sharing(in_input, labels[usable], stride):
        text = " and ".join(_shown(boxes[usable[row]]) for row in group[:2])
        found.append(("same_cell", f"boxes {text}" + (f" and {len(group) - 2} more" if len(group) > 2 else "")))
    return found


def joint_findings(keypoints: NDArray[np.float32], boxes: Boxes, size: tuple[int, int]) -> list[tuple[str, str]]:
    """Kind and text of what is found in the joints of one image: those that lie where they cannot be.

    Args:
        keypoints: `(objects, joints, 3)` x, y in the image frame and visibility.
        boxes: `(objects, 4)`.
        size: height and width of the image.
    """
    found = []
    points, labelled = keypoints[..., :2], keypoints[..., 2] > 0
    beyond = labelled & ((points < -1) | (points > np.array(size[::-1]) + 1)).any(axis=-1)
    # COCO's own boxes follow the outline, and its joints leave them by a little.
    slack = 0.25 * (boxes[:, 2:] - boxes[:, :2])[:, None] + 2
    off_box = (points < boxes[:, None, :2] - slack) | (points > boxes[:, None, 2:] + slack)
    off_box = labelled & ~beyond & off_box.any(axis=-1)
    for kind, which, where in (
        ("joints_outside", beyond, f"{size[1]} x {size[0]} pixels"),
        ("joints_off_box", off_box, "its box"),
    ):
        for row in np.flatnonzero(which.any(axis=1)):
            joint = int(which[row].argmax())
            x, y = points[row, joint].tolist()
            found.append((kind, f"joint {joint + 1} at ({x:g}, {y:g}) of box {_shown(boxes[row])} is not in {where}"))
    return found


def _named(input_size: tuple[int, int]) -> list[tuple[str, int]]:
    return [("the input's height", input_size[0]), ("the input's width", input_size[1])]


def _split_names(places: list[str], manifests: list[Manifest]) -> list[str]:
    """What findings call the splits: their names, or the places where both have one name."""
    names = [manifest.split for manifest in manifests]
    return names if len(set(names)) == len(names) else places


def _examine_shard(shards: Shards, shard: int, split: str, setting: _Setting) -> _Examined:
    index = shards.index(shard)
    findings: list[Finding] = []
    prints: list[tuple[str, Fingerprint]] = []
    same_cell: Counter[int] = Counter()
    for row in range(len(index)):
        sample = sample_key(int(index.image_ids[row]))
        data = shards.read_image(shard, row)
        found = _image_findings(data)
        try:
            prints.append((sample, fingerprint(data, decode_jpeg(data))))
        except ValueError as error:
            found.append(("undecodable", str(error)))
        first, last = index.row_splits[row : row + 2]
        # What is to be ignored is judged like a crowd.
        labels = index.labels[first:last]
        boxes, iscrowd = index.boxes[first:last], index.iscrowd[first:last] | (labels < 0)
        size = int(index.heights[row]), int(index.widths[row])
        found += box_findings(
            boxes,
            labels,
            iscrowd,
            size,
            stride=setting.stride,
            input_size=setting.input_size,
            max_objects=setting.max_objects,
        )
        if index.keypoints is not None:
            found += joint_findings(index.keypoints[first:last], boxes, size)
        if index.dropped_boxes is not None and (dropped := int(index.dropped_boxes[row])):
            found.append(("dropped", counted(dropped, "box")))
        findings += [Finding(kind, split, (sample,), text) for kind, text in found]
        in_input = _in_input(boxes[~iscrowd], size, setting.input_size)
        for stride in STRIDES:
            same_cell[stride] += sum(map(len, _sharing(in_input, labels[~iscrowd], stride)))
    return _Examined(findings, prints, same_cell)


def _image_findings(data: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if (orientation := exif_orientation(data)) != 1:
        found.append(("exif", f"orientation {orientation}, {_TURNED[orientation]} when it is read"))
    try:
        space = colour_space(data)
    except ValueError:
        return found  # it is reported as undecodable
    if space != "RGB":
        found.append((space.lower(), f"stored as {space}"))
    return found


def _in_input(boxes: Boxes, size: tuple[int, int], input_size: tuple[int, int]) -> Boxes:
    height, width = size
    return transform_boxes(boxes, crop_matrix((width / 2, height / 2), max(height, width), input_size))


def _sharing(boxes: Boxes, labels: NDArray[np.int64], stride: int) -> list[list[int]]:
    """Groups of boxes of one class whose centres, in the input frame, fall into one cell; ascending rows."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(np.int64)
    for row, ((x, y), label) in enumerate(zip(cells.tolist(), labels.tolist(), strict=True)):
        groups.setdefault((label, x, y), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _twice(boxes: Boxes, labels: NDArray[np.int64]) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows of one class whose boxes overlap so much that they are one object, and their IoU."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for row in range(len(boxes)):
        later = row + 1 + np.flatnonzero(labels[row + 1 :] == labels[row])
        sides = np.minimum(boxes[row, 2:], boxes[later, 2:]) - np.maximum(boxes[row, :2], boxes[later, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        overlaps = shared / (areas[row] + areas[later] - shared)
        for other in np.flatnonzero(overlaps >= _SAME_OBJECT):
            yield row, int(later[other]), float(overlaps[other])


def _shown(box: Boxes) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"


def _count(manifest: Manifest, indexes: list[ShardIndex], same_cell: dict[int, int]) -> Numbers:
    names = _class_titles(manifest)
    sizes: Counter[str] = Counter()
    objects = np.zeros(len(names), dtype=np.int64)
    images = np.zeros(len(names), dtype=np.int64)
    sides: list[NDArray[np.float64]] = []
    counts: list[NDArray[np.int64]] = []
    crowds = joints = without_joints = 0
    for index in indexes:
        sizes.update(f"{width} x {height}" for width, height in zip(index.widths, index.heights, strict=True))
        real = ~index.iscrowd & (index.labels >= 0)
        if index.keypoints is not None:
            labelled = (index.keypoints[real, :, 2] > 0).sum(axis=1)
            joints += int(labelled.sum())
            without_joints += int((labelled == 0).sum())
        rows = np.repeat(np.arange(len(index)), np.diff(index.row_splits))
        crowds += int(index.iscrowd.sum())
        objects += np.bincount(index.labels[real], minlength=len(names))
        pairs = np.unique(np.stack([rows[real], index.labels[real]]), axis=1)
        images += np.bincount(pairs[1], minlength=len(names))
        spans = np.maximum(index.boxes[real, 2:] - index.boxes[real, :2], 0).astype(np.float64)
        sides.append(np.sqrt(spans.prod(axis=1)))
        counts.append(np.bincount(rows[real], minlength=len(index)))
    side = np.concatenate(sides)
    return Numbers(
        images=manifest.num_samples,
        objects=int(objects.sum()),
        crowds=crowds,
        objects_of_class=dict(zip(names, objects.tolist(), strict=True)),
        images_of_class=dict(zip(names, images.tolist(), strict=True)),
        image_sizes=dict(sizes.most_common()),
        object_sizes=_octaves(side, 4),
        coco_sizes={
            "small": int((side < 32).sum()),
            "medium": int(((side >= 32) & (side < 96)).sum()),
            "large": int((side >= 96).sum()),
        },
        objects_per_image=_octaves(np.concatenate(counts).astype(np.float64), 1, whole=True),
        same_cell=same_cell,
        joints=joints,
        objects_without_joints=without_joints,
    )


def _octaves(values: NDArray[np.float64], first: int, *, whole: bool = False) -> dict[str, int]:
    """How many values lie below `first`, from there to below its double, and so on up to the largest."""
    if not len(values):
        return {}
    edges = [0, first]
    while edges[-1] <= values.max():
        edges.append(2 * edges[-1])
    counts = np.histogram(values, bins=[*edges[:-1], np.nextafter(edges[-1], 0)])[0]
    spans = [(low, high - 1 if whole else high) for low, high in itertools.pairwise(edges)]
    names = [f"{low} to {high}" if high > low else f"{low}" for low, high in spans]
    return dict(zip(names, counts.tolist(), strict=True))


def _class_titles(manifest: Manifest) -> list[str]:
    """The names of the classes, with their ids where several share one."""
    times = Counter(manifest.class_names)
    return [item.name if times[item.name] == 1 else f"{item.name} (id {item.id})" for item in manifest.classes]


def _class_findings(split: str, manifest: Manifest, numbers: Numbers) -> list[Finding]:
    found = [
        Finding("class_without_objects", split, (), f"class {item.id} {item.name!r}")
        for item, title in zip(manifest.classes, _class_titles(manifest), strict=True)
        if not numbers.objects_of_class[title]
    ]
    ids_of_name: dict[str, list[int]] = {}
    for item in manifest.classes:
        ids_of_name.setdefault(item.name, []).append(item.id)
    found += [
        Finding("class_names", split, (), f"{name!r} is the name of classes {', '.join(map(str, ids))}")
        for name, ids in ids_of_name.items()
        if len(ids) > 1
    ]
    ids = [item.id for item in manifest.classes]
    if missing := [number for number in range(min(ids[0], 1), ids[-1]) if number not in set(ids)]:
        shown = ", ".join(map(str, missing[:12])) + (", …" if len(missing) > 12 else "")
        found.append(
            Finding("class_ids", split, (), f"{len(ids)} classes with ids {ids[0]} to {ids[-1]}, without {shown}")
        )
    return found


def _differing_classes(ours: tuple[CocoClass, ...], theirs: tuple[CocoClass, ...], against: str) -> list[Finding]:
    if ours == theirs:
        return []
    parts = [
        f"{what} {', '.join(f'{item.id} {item.name!r}' for item in items[:6])}" + (", …" if len(items) > 6 else "")
        for what, items in (
            ("it lacks", [item for item in ours if item not in theirs]),
            ("it adds", [item for item in theirs if item not in ours]),
        )
        if items
    ]
    return [Finding("classes_differ", against, (), "; ".join(parts))]


def _duplicates(prints: list[tuple[str, str, Fingerprint]]) -> list[Finding]:
    only = [item for _, _, item in prints]
    found: list[Finding] = []
    for kind, groups, text in (
        ("same_bytes", same_bytes(only), "the same bytes"),
        ("same_picture", same_picture(only), "the same picture"),
    ):
        for group in groups:
            splits = [prints[index][0] for index in group]
            home = splits[0]
            keys = tuple(
                prints[index][1] if split == home else f"{split}/{prints[index][1]}"
                for split, index in zip(splits, group, strict=True)
            )
            across = "_across_splits" if len(set(splits)) > 1 else ""
            found.append(Finding(f"{kind}{across}", home, keys, text))
    return found

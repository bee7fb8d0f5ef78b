"""What a detector finds on the images of a data set, under any mode of test-time augmentation.

A *view* is an image at one scale. Views of one image are read side by side, shown to the network one after the other,
and merged as the detector's authors do; what comes out is in the image frame.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor

from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.evaluation_loader import EvaluationLoader
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from detectors import Detections, Detector
from pipelines.recipes.settings import EvaluationSettings


@dataclass(frozen=True)
class Found:
    """What a batch of images gave."""

    batch: Batch
    """The unscaled view, or the first where no scale is 1."""
    outputs: Any
    """The network's outputs for that view, of the images alone, not their mirrors."""
    detections: list[Detections]
    """One for each image, in the image frame, on the CPU."""
    seconds: float
    """From pixels that lie normalised on the device to detections in the image frame."""


def scales_shown(detector: Detector, settings: EvaluationSettings) -> tuple[float, ...]:
    """Scales of the views, in the order in which their detections are merged.

    Raises:
        DetectorError: the detector was not published with the mode, or with soft-NMS.
    """
    detector.check_test_mode(settings.tta, settings.soft_nms)
    return (settings.scales or detector.test_scales) if settings.tta == "multiscale" else (1.0,)


@contextmanager
def open_views(
    detector: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    *,
    input_size: tuple[int, int],
    world: World,
    limit: int | None = None,
) -> Iterator[Iterator[list[Batch]]]:
    """Batches of this rank's images, each as its views.

    Args:
        detector: says how inputs are padded.
        reading: the images, and how to read them.
        settings: geometry, mode and batch size.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        world: this rank among those that share the images.
        limit: use only the first images of the split, this many; None uses all.
    """
    kinds = [
        (scale, settings.longer_side_limit if scale == 1 else settings.scaled_longer_side_limit)
        for scale in scales_shown(detector, settings)
    ]
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(
                EvaluationLoader(
                    reading,
                    world,
                    geometry=settings.geometry,
                    input_size=input_size,
                    size_divisor=detector.preprocessing.size_divisor,
                    shorter_side=settings.shorter_side,
                    longer_side_limit=longer_side_limit,
                    scale=scale,
                    beside=kinds,
                    batch_size=settings.batch_size,
                    limit=limit,
                )
            )
            for scale, longer_side_limit in kinds
        ]
        yield (list(views) for views in zip(*loaders, strict=True))


@torch.no_grad()
def detect(detector: Detector, views: Sequence[Batch], settings: EvaluationSettings) -> Found:
    """Find objects on one batch of images.

    Args:
        detector: in evaluation mode, on the device of `views`.
        views: as `open_views` gives them, moved to the device.
        settings: mode, number of detections, soft-NMS.
    """
    scales = scales_shown(detector, settings)
    shown = scales.index(1.0) if 1.0 in scales else 0
    pixels = [augment(view, detector.preprocessing) for view in views]
    transforms = [view.transforms.cpu().double() for view in views]
    synchronize(pixels[0].device)
    start = time.perf_counter()
    parts: list[list[Detections]] = [[] for _ in views[0].image_ids]
    kept: Any = None
    for number, (view, images) in enumerate(zip(views, pixels, strict=True)):
        content = view.content_sizes
        outputs, mirrored = _run(detector, images, content, flip=settings.tta != "none")
        if number == shown:
            kept = outputs
        found = detector.candidates(outputs, view.input_size, settings.limit, mirrored=mirrored, content_sizes=content)
        for row, one in enumerate(found):
            moving = transforms[number][row], transforms[0][row]
            parts[row].append(_in_first_input(one, *moving) if detector.merges_in_input else in_image(one, moving[0]))
    detections = []
    for row, of_image in enumerate(parts):
        merged = detector.merge(of_image, settings.limit, soft=settings.soft_nms)
        detections.append(in_image(merged, transforms[0][row]) if detector.merges_in_input else merged)
    synchronize(pixels[0].device)
    return Found(views[shown], kept, detections, time.perf_counter() - start)


def milliseconds_one_by_one(
    detector: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    input_size: tuple[int, int],
    images: int,
    warm_up: int = 3,
) -> float:
    """Mean time of an image when they come one by one, as the published clocks measure; see `Found.seconds`.

    Args:
        detector: in evaluation mode, on `device`.
        reading: which images; the first of the set are taken.
        settings: geometry and mode.
        device: waited for, so that nothing of an image is counted for the next.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        images: how many are timed.
        warm_up: how many come before them without the clock.
    """
    seconds: list[float] = []
    settings, alone = replace(settings, batch_size=1), World(ranks=1, rank=0)
    opened = open_views(detector, reading, settings, input_size=input_size, world=alone, limit=warm_up + images)
    with opened as batches:
        for views in batches:
            seconds.append(detect(detector, [view.to(device) for view in views], settings).seconds)
    timed = seconds[warm_up:] or seconds[-1:]
    return 1000 * sum(timed) / len(timed)


def in_image(detections: Detections, transform: Tensor) -> Detections:
    """Detections on the CPU, taken from the input frame to the image's by a `transform` image to input `(2, 3)`."""
    keypoints = detections.keypoints
    if keypoints is not None:
        places = points_in_image(keypoints[..., :2].cpu(), transform)
        keypoints = torch.cat((places, keypoints[..., 2:].cpu()), dim=-1)
    return Detections(
        boxes=points_in_image(detections.boxes.cpu().reshape(-1, 2, 2), transform).reshape(-1, 4),
        scores=detections.scores.cpu(),
        labels=detections.labels.cpu(),
        keypoints=keypoints,
    )


def points_in_image(points_in_input: Tensor, transform: Tensor) -> Tensor:
    """Take points from the input frame back to the image frame.

    Args:
        points_in_input: float `(..., 2)` as x, y.
        transform: float `(2, 3)`, the affine map from image to input.

    Returns:
        float32, same shape.
    """
    linear, shift = transform[:, :2].double(), transform[:, 2].double()
    points = (points_in_input.double() - shift).reshape(-1, 2)
    return torch.linalg.solve(linear, points.T).T.reshape(points_in_input.shape).float()


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _run(detector: Detector, images: Tensor, content: Tensor | None, *, flip: bool) -> tuple[Any, Any]:
    """Outputs for the images and, with `flip`, for their mirrors, from one batch of both."""
    if not flip:
        return detector(images), None
    widths = torch.full((len(images),), images.shape[-1], device=images.device) if content is None else content[:, 1]
    both = detector(torch.cat((images, detector.mirror(images, widths))))
    half = len(images)
    tree_map = torch.utils._pytree.tree_map
    return tree_map(lambda maps: maps[:half], both), tree_map(lambda maps: maps[half:], both)


def _in_first_input(detections: Detections, transform: Tensor, first: Tensor) -> Detections:
    """Boxes of one view in the input frame of the first; those of the first stay to the bit as they are."""
    if torch.equal(transform, first):
        return detections
    linear = first[:, :2] @ torch.linalg.inv(transform[:, :2])
    shift = first[:, 2] - linear @ transform[:, 2]
    boxes = detections.boxes
    # No rotation, no skew: a factor and a shift for each axis.
    factor, offset = (part.to(boxes).repeat(2) for part in (linear.diagonal(), shift))
    return replace(detections, boxes=boxes * factor + offset)

"""Detections on the images of a data set, in any mode of test-time augmentation.

A *view* is an image at one scale. The views of an image are read side by side; the detector runs on each, and merges
its detections in the image frame.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.evaluation_in_process import batches_of_views
from data_shards.loading.evaluation_inputs import EvaluationInputs
from data_shards.loading.evaluation_inputs import View as ImageView
from data_shards.loading.evaluation_loader import EvaluationLoader
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.reading.samples import Samples
from data_shards.settings import BoxRules, Resizing
from detectors import Detections, Detector, View
from pipelines.recipes.settings import EvaluationSettings


@dataclass(frozen=True)
class Found:
    """Results for a batch of images."""

    batch: Batch
    """The unscaled view, or the first if no scale is 1."""
    outputs: Any
    """The network's outputs for that view, without the mirrors; None if the detector passes none to `watch`."""
    detections: list[Detections]
    """For each image, in the image frame, on the CPU."""
    seconds: float
    """From normalised pixels on the device to detections in the image frame."""


def scales_shown(detector: Detector, settings: EvaluationSettings) -> tuple[float, ...]:
    """Scales of the views; see `Detector.scales_shown`."""
    return detector.scales_shown(settings.tta, settings.soft_nms, settings.scales)


def image_views(detector: Detector, settings: EvaluationSettings) -> list[ImageView]:
    """Views of every image, in the order in which the detector merges them."""
    return [
        ImageView(scale, settings.longer_side_limit if scale == 1 else settings.scaled_longer_side_limit)
        for scale in scales_shown(detector, settings)
    ]


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
    kinds = image_views(detector, settings)
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(
                EvaluationLoader(
                    reading,
                    world,
                    geometry=settings.geometry,
                    input_size=input_size,
                    sizes=detector.sizes,
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


def read_views(
    detector: Detector,
    samples: Samples,
    settings: EvaluationSettings,
    *,
    input_size: tuple[int, int],
    resizing: Resizing,
    rules: BoxRules,
    threads: Executor | None = None,
) -> Iterator[list[Batch]]:
    """Yield the same batches as `open_views`, without labels, made in this process.

    Args:
        detector: says how inputs are padded.
        samples: the images.
        settings: geometry, mode and batch size.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        resizing: the library whose pixels a whole image gets.
        rules: meaning of the corners of boxes.
        threads: read images, those of the next batch too; None reads them in the caller's thread.

    Raises:
        DataError: an image cannot be read.
    """
    inputs = EvaluationInputs(
        geometry=settings.geometry,
        input_size=input_size,
        sizes=detector.sizes,
        shorter_side=settings.shorter_side,
        resizing=resizing,
        boxes=rules,
    )
    views = image_views(detector, settings)
    return batches_of_views(samples, inputs, views, batch_size=settings.batch_size, threads=threads)


def detect(detector: Detector, views: Sequence[Batch], settings: EvaluationSettings) -> Found:
    """Find objects on one batch of images.

    Args:
        detector: in evaluation mode, on the device of `views`.
        views: from `open_views`, moved to the device.
        settings: mode, number of detections, soft-NMS.
    """
    scales = scales_shown(detector, settings)
    shown = scales.index(1.0) if 1.0 in scales else 0
    outputs_shown: Any = None

    def keep(number: int, outputs: Any) -> None:
        nonlocal outputs_shown
        if number == shown:
            outputs_shown = outputs

    received = [
        View(
            images=augment(view, detector.preprocessing),
            transforms=view.transforms.cpu(),
            content_sizes=view.content_sizes,
            image_sizes=view.original_sizes.cpu(),
            scale=scale,
        )
        for scale, view in zip(scales, views, strict=True)
    ]
    # Normalising is part of reading, so the clock starts after it.
    synchronize(received[0].images.device)
    start = time.perf_counter()
    detections = detector.detect(received, mode=settings.tta, soft=settings.soft_nms, limit=settings.limit, watch=keep)
    synchronize(received[0].images.device)
    return Found(views[shown], outputs_shown, detections, time.perf_counter() - start)


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
    """Mean time of an image when images are processed one by one, as published times are measured; see `Found.seconds`.

    Args:
        detector: in evaluation mode, on `device`.
        reading: the images, of which the first ones are used.
        settings: geometry and mode.
        device: synchronised around each image, so that its work does not count for the next one.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        images: number of images that are timed.
        warm_up: number of images before them that are not timed.
    """
    seconds: list[float] = []
    settings, alone = replace(settings, batch_size=1), World(ranks=1, rank=0)
    opened = open_views(detector, reading, settings, input_size=input_size, world=alone, limit=warm_up + images)
    with opened as batches:
        for views in batches:
            seconds.append(detect(detector, [view.to(device) for view in views], settings).seconds)
    timed = seconds[warm_up:] or seconds[-1:]
    return 1000 * sum(timed) / len(timed)


def boxes_on_edges(boxes_in_image: Tensor, rules: BoxRules) -> Tensor:
    """Turn boxes that end as in training into boxes that end on edges, as COCO's do."""
    last_pixel = 1.0 if rules.box_ends == "last_pixel" else 0.0
    return boxes_in_image + boxes_in_image.new_tensor([0, 0, last_pixel, last_pixel])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

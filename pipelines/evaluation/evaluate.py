"""Evaluation: every rank runs the detector on its share of validation shards; pycocotools judges on rank 0."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.utils._pytree
from torch import Tensor

from data_shards.format.manifest import Manifest
from data_shards.loading.batch import Batch
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.settings import BoxRules
from detectors import Detections, Detector
from pipelines.evaluation.coco_metrics import CocoMetrics, evaluate_boxes, results_from_detections
from pipelines.evaluation.keypoint_metrics import KeypointMetrics, evaluate_keypoints
from pipelines.evaluation.views import Found, detect, open_views
from pipelines.pictures.prediction_page import Picture
from pipelines.recipes.settings import EvaluationSettings


@dataclass
class Evaluation:
    """Results of one pass over the validation shards."""

    coco: CocoMetrics
    keypoints: KeypointMetrics | None
    """For detectors of joints."""
    losses: dict[str, float]
    """Validation losses, the mean over images."""
    pictures: list[Picture]
    """The validation images with the smallest ids, in the input frame, with truth and predictions."""
    milliseconds_per_image: float
    """Network, decoding and merging, on one rank, batch by batch."""
    num_images: int

    @property
    def score(self) -> float:
        """Figure that ranks checkpoints: AP of keypoints if there are any, otherwise of boxes; may be NaN."""
        return self.coco.AP if self.keypoints is None else self.keypoints.AP

    def metrics(self) -> dict[str, float]:
        """Figures by their names in MLflow."""
        losses = {f"val/{'loss' if name == 'loss' else f'loss_{name}'}": value for name, value in self.losses.items()}
        keypoints = self.keypoints.as_metrics("val") if self.keypoints else {}
        return {
            **self.coco.as_metrics("val"),
            **keypoints,
            **losses,
            "val/milliseconds_per_image": self.milliseconds_per_image,
        }


@dataclass
class _Share:
    """Sums of one rank over its images."""

    results: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    seconds: float = 0.0
    num_images: int = 0


def evaluate(
    detector: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    *,
    input_size: tuple[int, int],
    device: torch.device,
    world: World,
    progress: Callable[[int], None] = lambda num_images: None,
) -> Evaluation | None:
    """Measure a detector on validation shards. Collective: returns the result on rank 0, None elsewhere.

    Args:
        detector: with the weights to measure, on `device`.
        reading: the validation shards, whose classes are the detector's, and how to read them.
        settings: geometry, batch, number of detections, test-time augmentation.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        device: where the network runs.
        world: this rank among all ranks, which share the images.
        progress: called with the number of images that this rank has finished.

    Raises:
        DetectorError: the detector was not published with the mode of test-time augmentation.
    """
    detector.eval()
    share = _Share()
    manifest, boxes = reading.split.manifest, reading.boxes
    ground_truth = coco_ground_truth(reading.split)
    pictured = _crowds_of_pictured(ground_truth, settings.pictures, boxes)
    opened = open_views(detector, reading, settings, input_size=input_size, world=world)
    with opened as batches, torch.no_grad():
        for views in batches:
            found = detect(detector, [view.to(device) for view in views], settings)
            _add(share, detector, found, manifest, settings, pictured, boxes)
            progress(share.num_images)
    shares = _gathered(share, world)
    if shares is None:
        return None
    num_images = sum(one.num_images for one in shares)
    losses = {name: sum(one.losses.get(name, 0.0) for one in shares) / max(num_images, 1) for name in shares[0].losses}
    results = [result for one in shares for result in one.results]
    return Evaluation(
        coco=evaluate_boxes(ground_truth, results),
        keypoints=evaluate_keypoints(ground_truth, results),
        losses=losses,
        pictures=_named([picture for one in shares for picture in one.pictures], ground_truth),
        milliseconds_per_image=1000 * sum(one.seconds for one in shares) / max(num_images, 1),
        num_images=num_images,
    )


def _add(
    share: _Share,
    detector: Detector,
    found: Found,
    manifest: Manifest,
    settings: EvaluationSettings,
    pictured: dict[int, list[bool]],
    rules: BoxRules,
) -> None:
    batch = found.batch
    share.seconds += found.seconds
    share.num_images += len(batch.images)
    _add_losses(share, detector, batch, found.outputs)
    class_ids = [item.id for item in manifest.classes]
    for row, one in enumerate(found.detections):
        image_id = int(batch.image_ids[row])
        share.results += results_from_detections(
            [image_id] * len(one.scores),
            _up_to_edges(one.boxes, rules).numpy(),
            one.scores.numpy(),
            one.labels.numpy(),
            class_ids,
            rounding=settings.published_rounding,
            keypoints=None if one.keypoints is None else one.keypoints[..., :2].numpy(),
        )
        if image_id in pictured:
            share.pictures.append(_picture(batch, row, one, pictured[image_id]))


def _up_to_edges(boxes_in_image: Tensor, rules: BoxRules) -> Tensor:
    """Boxes that end on edges, as COCO's do, from boxes that end as those the detector was trained on."""
    last_pixel = 1.0 if rules.box_ends == "last_pixel" else 0.0
    return boxes_in_image + boxes_in_image.new_tensor([0, 0, last_pixel, last_pixel])


def _add_losses(share: _Share, detector: Detector, batch: Batch, outputs: Any) -> None:
    """Add the losses of one image at a time: a batch's are divided by its objects, so they would depend on its images.

    Nothing is added if the data lacks annotations that the detector needs, such as depths in COCO's, or if the
    detector runs in several passes without outputs for its losses.
    """
    if outputs is None or not batch.extra.keys() >= set(detector.needs):
        return
    for row in range(len(batch.images)):
        own = slice(row, row + 1)
        extra = {name: values[own] for name, values in batch.extra.items()}
        targets = detector.encode(batch.boxes[own], batch.labels[own], batch.input_size, **extra)
        one = torch.utils._pytree.tree_map(lambda maps, own=own: maps[own], outputs)
        for name, value in detector.losses(one, targets).items():
            share.losses[name] = share.losses.get(name, 0.0) + float(value)


def _picture(batch: Batch, row: int, found: Detections, crowd: list[bool]) -> Picture:
    real = batch.labels[row] >= 0
    height, width = (int(value) for value in batch.original_sizes[row])
    # Only the photograph is drawn, without the border of the letterbox.
    corners = batch.transforms[row].cpu().double() @ torch.tensor(
        [[0.0, width], [0.0, height], [1.0, 1.0]], dtype=torch.float64
    )
    left, top = (max(0, round(float(value))) for value in corners[:, 0])
    right, bottom = (round(float(value)) for value in corners[:, 1])
    shift = torch.tensor([left, top, left, top], dtype=torch.float32)
    transform = batch.transforms[row].cpu()
    predicted = (found.boxes.reshape(-1, 2, 2) @ transform[:, :2].T + transform[:, 2]).reshape(-1, 4)
    pixels = batch.images[row, :, top:bottom, left:right].permute(1, 2, 0).cpu().numpy()
    return Picture(
        image=np.ascontiguousarray(pixels),
        truth_boxes=(batch.boxes[row][real].cpu() - shift).numpy(),
        truth_labels=batch.labels[row][real].cpu().numpy(),
        truth_crowd=np.array(crowd[: int(real.sum())], dtype=bool),
        predicted_boxes=(predicted - shift).numpy(),
        predicted_scores=found.scores.numpy(),
        predicted_labels=found.labels.numpy(),
        image_id=int(batch.image_ids[row]),
    )


def _crowds_of_pictured(ground_truth: dict[str, Any], count: int, rules: BoxRules) -> dict[int, list[bool]]:
    """For the images with the smallest ids, the same in every world: for each box, in file order, if it is a crowd."""
    crowds: dict[int, list[bool]] = {image["id"]: [] for image in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        if annotation["iscrowd"] and rules.crowd == "drop":
            continue
        crowds[annotation["image_id"]].append(bool(annotation["iscrowd"]))
    return {image_id: crowds[image_id] for image_id in sorted(crowds)[:count]}


def _named(pictures: list[Picture], ground_truth: dict[str, Any]) -> list[Picture]:
    """Return the pictures by ascending image id, each with the file name of its image."""
    names = {image["id"]: image.get("file_name", "") for image in ground_truth["images"]}
    named = [replace(picture, file_name=names[picture.image_id]) for picture in pictures]
    return sorted(named, key=lambda picture: picture.image_id)


def _gathered(share: _Share, world: World) -> list[_Share] | None:
    if world.ranks == 1:
        return [share]
    shares: list[Any] | None = [None] * world.ranks if world.rank == 0 else None
    torch.distributed.gather_object(share, shares)
    return shares

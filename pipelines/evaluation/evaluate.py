"""Evaluation: every rank runs the detector on its share of validation shards; pycocotools judges on rank 0."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
import torch.utils._pytree
from torch import Tensor

from data_shards.errors import DataError
from data_shards.format.manifest import Manifest
from data_shards.loading.batch import Batch
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.order.plan import World
from data_shards.reading.reading import Reading
from data_shards.settings import BoxRules
from detectors import Detections, Detector, DetectorError
from detectors.shared.camera import place_in_camera, with_published_sizes
from pipelines.errors import ConfigError
from pipelines.evaluation.coco_metrics import CocoMetrics, evaluate_boxes, results_from_detections
from pipelines.evaluation.keypoint_metrics import KeypointMetrics, evaluate_keypoints
from pipelines.evaluation.pictured import Drawn, DrawnImages, joined
from pipelines.evaluation.views import Found, detect, open_views
from pipelines.recipes.settings import EvaluationSettings


@dataclass
class Evaluation:
    """Results of one pass over the validation shards."""

    coco: CocoMetrics
    keypoints: KeypointMetrics | None
    """For detectors of joints."""
    losses: dict[str, float]
    """Validation losses, the mean over images."""
    drawn: Drawn
    """Validation images in the input frame, with truth and predictions."""
    milliseconds_per_image: float
    """Network, decoding and merging, on one rank, batch by batch."""
    num_images: int
    highest_score: float | None = None
    """Score of the most confident detection; None without any."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """Every detection by ascending image id, if `evaluate` was asked for them, as COCO's results: `image_id`,
    `category_id`, `bbox`, `score`, and `keypoints` of detectors of joints. In 3D also `center` (x and y in the image),
    `depth`, `dimensions` (height, width and length) and `alpha`; and where the camera is known, `location` (x, y and z
    of the underside's middle) and `rotation_y`. In pixels, metres and radians."""

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


class EvaluationError(ConfigError):
    """An evaluation failed; the message names the images and the cause."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace
        """Traceback of the rank that failed."""


class EvaluationStoppedError(Exception):
    """Raised by `progress` of any rank to end an evaluation early."""


@dataclass
class _Share:
    """Sums of one rank over its images."""

    results: list[dict[str, Any]] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=Drawn)
    seconds: float = 0.0
    num_images: int = 0
    failure: str = ""
    """Images and cause, if the rank could not finish its images."""
    trace: str = ""
    stopped: bool = False
    """True if `progress` ended the evaluation."""


def evaluate(
    detector: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    *,
    input_size: tuple[int, int],
    device: torch.device,
    world: World,
    progress: Callable[[int], None] = lambda num_images: None,
    keep_results: bool = False,
    group: Any = None,
    computing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation | None:
    """Measure a detector on validation shards. Collective. Returns the result on rank 0, None elsewhere.

    A failure on any rank is raised on rank 0 only, after all ranks have finished or failed: the process group stays
    usable, and training can continue.

    Args:
        detector: with the weights to measure, on `device`.
        reading: the validation shards, whose classes are the detector's, and how to read them.
        settings: geometry, batch, number of detections, test-time augmentation.
        input_size: height and width of the input, in pixels, for the fixed geometry.
        device: where the network runs.
        world: this rank among all ranks, which share the images.
        progress: called with the number of images that this rank has finished; may raise EvaluationStoppedError.
        keep_results: also return every detection.
        group: process group in which ranks wait for one another; None takes the default one.
        computing: entered on rank 0 while it computes the metrics, which may take minutes without progress.

    Raises:
        ConfigError: a setting is for other detectors.
        EvaluationError: an image or an annotation cannot be evaluated.
        EvaluationStoppedError: raised by `progress` on some rank.
        DataError: rank 0 cannot read its shards.
        DetectorError: the detector was not published with the mode of test-time augmentation.
    """
    if settings.published_heights and "depth" not in detector.needs:
        raise ConfigError(f"evaluation.published_heights is for detectors in 3D, unlike {detector.name}; leave it off.")
    detector.eval()
    share, ground_truth = _Share(), dict[str, Any]()
    own_error: Exception | None = None
    try:
        ground_truth = coco_ground_truth(reading.split)
        _judge(share, detector, reading, settings, input_size, device, world, ground_truth, progress, keep_results)
    except EvaluationStoppedError:
        share.stopped = True
    except Exception as error:
        # Kept until the exchange below, in which the other ranks would wait for this one.
        own_error, share.failure, share.trace = error, str(_named_error(error)), traceback.format_exc()
    shares = _gathered(share, world, group)
    if shares is None:
        return None
    if any(one.stopped for one in shares):
        raise EvaluationStoppedError
    if isinstance(own_error, (ConfigError, DataError, DetectorError)):
        raise own_error
    if failed := [one for one in shares if one.failure]:
        raise EvaluationError(failed[0].failure, failed[0].trace) from own_error
    num_images = sum(one.num_images for one in shares)
    # The names of all ranks: with more ranks than images, rank 0 may have none.
    names = dict.fromkeys(name for one in shares for name in one.losses)
    losses = {name: sum(one.losses.get(name, 0.0) for one in shares) / max(num_images, 1) for name in names}
    results = [result for one in shares for result in one.results]
    with computing():
        coco, keypoints = _metrics(ground_truth, results)
    return Evaluation(
        coco=coco,
        keypoints=keypoints,
        losses=losses,
        drawn=joined((one.drawn for one in shares), ground_truth, settings.pictures),
        milliseconds_per_image=1000 * sum(one.seconds for one in shares) / max(num_images, 1),
        num_images=num_images,
        highest_score=max((float(result["score"]) for result in results), default=None),
        results=sorted(results, key=lambda result: result["image_id"]) if keep_results else [],
    )


def _judge(
    share: _Share,
    detector: Detector,
    reading: Reading,
    settings: EvaluationSettings,
    input_size: tuple[int, int],
    device: torch.device,
    world: World,
    ground_truth: dict[str, Any],
    progress: Callable[[int], None],
    keep_results: bool,
) -> None:
    """Run the detector over this rank's images."""
    drawn_images = DrawnImages(ground_truth, settings.pictures, reading.boxes)
    share.drawn = drawn_images.drawn
    opened = open_views(detector, reading, settings, input_size=input_size, world=world)
    with opened as batches, torch.no_grad():
        for views in batches:
            with _naming(views[0].image_ids.tolist()):
                found = detect(detector, [view.to(device) for view in views], settings)
                _add(
                    share, detector, found, reading.split.manifest, settings, drawn_images, reading.boxes, keep_results
                )
            progress(share.num_images)


@contextmanager
def _naming(image_ids: Sequence[int]) -> Iterator[None]:
    """Name the images in an error that the block raises, unless it names some already."""
    try:
        yield
    except (ConfigError, DataError, DetectorError):
        raise
    except Exception as error:
        which = f"image {image_ids[0]}" if len(image_ids) == 1 else f"images {', '.join(map(str, image_ids))}"
        raise EvaluationError(f"{which}: {_named_error(error)}", traceback.format_exc()) from error


def _named_error(error: Exception) -> str:
    if isinstance(error, (ConfigError, DataError, DetectorError)):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _metrics(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[CocoMetrics, KeypointMetrics | None]:
    """Compute the metrics; if that fails, name the image that makes it fail."""
    try:
        return evaluate_boxes(ground_truth, results), evaluate_keypoints(ground_truth, results)
    except Exception as error:
        images = ground_truth["images"]
        # By halves: each try takes as long as an evaluation of its images.
        while len(images) > 1:
            half = images[: len(images) // 2]
            images = half if _fails(ground_truth, results, half) else images[len(images) // 2 :]
        which = f"image {images[0]['id']}: " if images and _fails(ground_truth, results, images) else ""
        raise EvaluationError(f"{which}{_named_error(error)}", traceback.format_exc()) from error


def _fails(ground_truth: dict[str, Any], results: list[dict[str, Any]], images: list[dict[str, Any]]) -> bool:
    ids = {image["id"] for image in images}
    kept = [one for one in ground_truth["annotations"] if one["image_id"] in ids]
    part = {**ground_truth, "images": images, "annotations": kept}
    found = [one for one in results if one["image_id"] in ids]
    try:
        evaluate_boxes(part, found)
        evaluate_keypoints(part, found)
    except Exception:
        return True
    return False


def _add(
    share: _Share,
    detector: Detector,
    found: Found,
    manifest: Manifest,
    settings: EvaluationSettings,
    drawn_images: DrawnImages,
    rules: BoxRules,
    keep_results: bool,
) -> None:
    batch = found.batch
    share.seconds += found.seconds
    share.num_images += len(batch.images)
    _add_losses(share, detector, batch, found.outputs)
    class_ids = [item.id for item in manifest.classes]
    for row, one in enumerate(found.detections):
        if settings.published_heights:
            one.boxes = with_published_sizes(one.boxes, batch.transforms[row].cpu())
        image_id = int(batch.image_ids[row])
        share.results += results_from_detections(
            [image_id] * len(one.scores),
            _up_to_edges(one.boxes, rules).numpy(),
            one.scores.numpy(),
            one.labels.numpy(),
            class_ids,
            rounding=settings.published_rounding,
            keypoints=None if one.keypoints is None else one.keypoints[..., :2].numpy(),
            further=_in_3d(one, batch, row) if keep_results and one.box3d is not None else (),
        )
        drawn_images.add(batch, row, one)


def _in_3d(found: Detections, batch: Batch, row: int) -> list[dict[str, Any]]:
    """Describe each detection of an image in 3D; in the camera's frame, too, if the image has one.

    Nothing is said of detections that are not finite, which JSON could not hold.
    """
    assert found.box3d is not None
    center, depth, dimensions, alpha = torch.split(found.box3d.double(), [2, 1, 3, 1], dim=-1)
    described = [
        {"center": place, "depth": distance, "dimensions": size, "alpha": angle}
        for place, distance, size, angle in zip(
            center.tolist(), depth[:, 0].tolist(), dimensions.tolist(), alpha[:, 0].tolist(), strict=True
        )
    ]
    calibration = None if batch.calibration is None else batch.calibration[row].cpu().double()
    if calibration is not None and bool(calibration.isfinite().all()):
        location, rotation = place_in_camera(center, depth[:, 0], dimensions, alpha[:, 0], calibration)
        for one, place, angle in zip(described, location.tolist(), rotation.tolist(), strict=True):
            one |= {"location": place, "rotation_y": angle}
    is_finite = found.box3d.isfinite().all(dim=-1).tolist()
    return [one if finite else {} for one, finite in zip(described, is_finite, strict=True)]


def _up_to_edges(boxes_in_image: Tensor, rules: BoxRules) -> Tensor:
    """Turn boxes that end as in training into boxes that end on edges, as COCO's do."""
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
        with _naming([int(batch.image_ids[row])]):
            extra = {name: values[own] for name, values in batch.extra.items()}
            targets = detector.encode(batch.boxes[own], batch.labels[own], batch.input_size, **extra)
            one = torch.utils._pytree.tree_map(lambda maps, own=own: maps[own], outputs)
            for name, value in detector.losses(one, targets).items():
                share.losses[name] = share.losses.get(name, 0.0) + float(value)


def _gathered(share: _Share, world: World, group: Any) -> list[_Share] | None:
    if world.ranks == 1:
        return [share]
    shares: list[Any] | None = [None] * world.ranks if world.rank == 0 else None
    torch.distributed.gather_object(share, shares, group=group)
    return shares

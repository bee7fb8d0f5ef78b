"""A trained detector on images at hand: `load("runs/cells").predict("photo.jpg")`.

Images are read, resized and shown to the detector by the code of evaluation, so a file has the same detections as its
copy in shards.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counting import counted
from data_shards.reading.pictures import Picture, PictureSamples
from detectors.shared.camera import with_published_sizes
from pipelines.errors import ConfigError
from pipelines.evaluation.views import Found, boxes_on_edges, detect, read_views
from pipelines.hints import did_you_mean
from pipelines.prediction.images import ImageLike, as_picture
from pipelines.prediction.prediction import Prediction
from pipelines.recipes.settings import EvaluationSettings
from pipelines.trained.trained import Trained, open_trained

Threshold = float | Mapping[str, float] | None
"""Least score of a detection: for all classes, by the name of the class, or as the run's evaluation found it best."""

UNKNOWN_THRESHOLD = 0.3
"""Least score of a class whose best threshold is unknown."""

# Images whose files are read before they are grouped by size, for each image of a batch.
_GROUPED = 4
_CLASSES_SHOWN = 8


class Predictor:
    """A trained detector that takes images and returns the objects in them. Safe to use from several threads.

    Args:
        trained: the detector, with the settings that say how images are shown to it.

    Raises:
        DetectorError: the network does not take inputs of the recipe's size.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self._rules = replace(trained.recipe.data.box_rules, corners=trained.detector.box_corners)
        # Networks may keep tensors from call to call, such as the places of their points.
        self._detector_in_use = threading.Lock()
        if trained.recipe.evaluation.geometry in ("fixed", "width"):
            trained.detector.check_input_size(trained.input_size)

    def __repr__(self) -> str:
        detector = f"{self.trained.detector.name} from {self.trained.identity.location} on {self.trained.device}"
        names = self.class_names
        classes = ", ".join([*names[:_CLASSES_SHOWN], *(["…"] if len(names) > _CLASSES_SHOWN else [])])
        return f"Predictor({detector}; {counted(len(names), 'class')}: {classes})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.trained.class_names

    @overload
    def predict(
        self,
        images: ImageLike,
        *,
        threshold: Threshold = None,
        tta: str | None = None,
        batch_size: int | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = None,
        tta: str | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: Threshold = None,
        tta: str | None = None,
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Find the objects in an image, or in each image of a list.

        Args:
            images: a JPEG or PNG file or its bytes, an array of uint8 (upright, RGB `(height, width, 3)` or gray
                `(height, width)`), or a PIL image; or a list or tuple of these.
            threshold: least score, of all classes or by the class's name. None, and a class that the mapping leaves
                out, take the score of the class's best F1 in the run's evaluation, or 0.3 if that is unknown.
            tta: test-time augmentation: "none", "flip" or "multiscale"; None takes the recipe's.
            batch_size: most images that go through the network together, if their inputs have the same size; None
                takes the recipe's.

        Returns:
            The objects of the image; or a list of them, in the order of the images.

        Raises:
            ConfigError: an image or an argument is none of the above.
            DataError: an image cannot be read.
            DetectorError: the detector was not published with this test-time augmentation.
        """
        settings = self._settings(tta, batch_size)
        least = self._least_scores(threshold)
        if not isinstance(images, (list, tuple)):
            return self._predict([as_picture(images, "the image")], ["the image"], settings, least)[0]
        found: list[Prediction] = []
        with ExitStack() as stack:
            threads = None
            if len(images) > 1:
                # Threads of this call alone: a process that is forked later has none of them.
                threads = stack.enter_context(ThreadPoolExecutor(self.trained.recipe.data.threads))
            # In parts, so that neither files nor PIL's pixels fill the memory.
            size = _GROUPED * settings.batch_size
            for first in range(0, len(images), size):
                part = images[first : first + size]
                names = [f"images[{first + place}]" for place in range(len(part))]
                pictures = [as_picture(image, name) for image, name in zip(part, names, strict=True)]
                found += self._predict(pictures, names, settings, least, threads)
        return found

    def predict_batch(
        self, images: Sequence[NDArray[np.uint8]], *, threshold: Threshold = None, tta: str | None = None
    ) -> list[Prediction]:
        """Find the objects in images that are decoded already; those with inputs of one size run together.

        Args:
            images: upright, RGB, uint8 `(height, width, 3)`.
            threshold, tta: as for `predict`.
        """
        return self.predict(list(images), threshold=threshold, tta=tta, batch_size=max(1, len(images)))

    def _settings(self, tta: str | None, batch_size: int | None) -> EvaluationSettings:
        settings = self.trained.recipe.evaluation
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; give 1 or more.")
        if tta is not None:
            # Before `replace`, whose type has only the modes that exist.
            self.trained.detector.check_test_mode(tta)
        changes: dict[str, Any] = {"tta": tta, "batch_size": batch_size}
        return replace(settings, **{name: value for name, value in changes.items() if value is not None})

    def _least_scores(self, threshold: Threshold) -> NDArray[np.float64]:
        """Return the least score of each class, in the order of the labels."""
        names = self.class_names
        best = [self.trained.thresholds.get(name, UNKNOWN_THRESHOLD) for name in names]
        if threshold is None:
            return np.array(best)
        given = threshold if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
        for name, score in given.items():
            if name not in names:
                hint = did_you_mean(str(name), names, f"the classes are {', '.join(names)}.")
                raise ConfigError(f"threshold has the class {name!r}, which the detector does not know; {hint}")
            if isinstance(score, bool) or not isinstance(score, (int, float, np.number)) or not 0 <= score <= 1:
                raise ConfigError(f"threshold is {score!r} for {name}; give a number from 0 to 1.")
        return np.array([given.get(name, least) for name, least in zip(names, best, strict=True)], dtype=np.float64)

    def _predict(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str],
        settings: EvaluationSettings,
        least_scores: NDArray[np.float64],
        threads: Executor | None = None,
    ) -> list[Prediction]:
        trained, found = self.trained, dict[int, Prediction]()
        pairs = zip(pictures, names, strict=True)
        named = [picture if isinstance(picture, str) else name for picture, name in pairs]
        batches = read_views(
            trained.detector,
            PictureSamples(pictures, named),
            settings,
            input_size=trained.input_size,
            resizing=trained.recipe.data.resizing,
            rules=self._rules,
            threads=threads,
        )
        for views in batches:
            with self._detector_in_use:
                result = detect(trained.detector, [view.to(trained.device) for view in views], settings)
            sizes = views[0].original_sizes.tolist()
            for row, number in enumerate(views[0].sample_ids.tolist()):
                found[number] = self._prediction(result, row, sizes[row], settings, least_scores)
        return [found[number] for number in range(len(pictures))]

    def _prediction(
        self, found: Found, row: int, size: list[int], settings: EvaluationSettings, least_scores: NDArray[np.float64]
    ) -> Prediction:
        """Return what evaluation would count of an image, from the least scores on."""
        one = found.detections[row]
        boxes = one.boxes
        if settings.published_heights:
            boxes = with_published_sizes(boxes, found.batch.transforms[row].cpu())
        boxes_in_image = boxes_on_edges(boxes, self._rules).numpy()
        scores, labels = one.scores.numpy(), one.labels.numpy()
        # Numbers that are not finite fail every comparison or cannot be drawn; evaluation leaves them out, too.
        kept = (scores >= least_scores[labels]) & np.isfinite(boxes_in_image).all(axis=1)
        keypoints = None if one.keypoints is None else one.keypoints.numpy()
        if keypoints is not None:
            kept &= np.isfinite(keypoints[..., :2]).all(axis=(1, 2))
        labels = labels[kept]
        return Prediction(
            boxes=boxes_in_image[kept],
            scores=scores[kept],
            labels=labels,
            class_names=[self.class_names[label] for label in labels.tolist()],
            size=(size[0], size[1]),
            keypoints=None if keypoints is None else keypoints[kept],
            box3d=None if one.box3d is None else one.box3d.numpy()[kept],
        )


def load_predictor(
    source: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    newest: bool = False,
    flags: Sequence[str] = (),
) -> Predictor:
    """Open a trained detector for predictions; see `pipelines.load`."""
    return Predictor(open_trained(os.fspath(source), device=_device(device), newest=newest, flags=flags))


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device is {device!r}; give cpu, cuda, or cuda:1 for the second GPU.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {str(device)!r}, but torch {torch.__version__} finds {torch.cuda.device_count()} GPUs here; "
            "give one of them, or cpu."
        )
    return chosen

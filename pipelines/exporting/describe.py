"""The description that an exported file carries."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Literal

import torch
from torch import Tensor

from cluster.checkpoints.envelope import aweigh_version
from detectors import Detector
from detectors.cornernet.cornernet import CornerNet
from detectors.fcos.fcos import FCOS
from detectors.foveabox.foveabox import FoveaBox
from pipelines.exporting.onnx_file import OPSET, OUTPUTS
from pipelines.exporting.torch_file import FileInput
from pipelines.recipes.settings import EvaluationSettings, Recipe
from pipelines.trained.file_description import (
    FORMAT_VERSION,
    Clipping,
    DescribedInput,
    FileDescription,
    FileIdentity,
    FileSizes,
    described_recipe,
)
from pipelines.trained.trained import Trained

Format = Literal["onnx", "torch"]
Precision = Literal["float32", "float16"]


def describe(
    trained: Trained,
    given: FileInput,
    *,
    to: Format,
    precision: Precision,
    limit: int,
    least_side: int,
    strides: tuple[int, ...],
) -> FileDescription:
    """Describe a file.

    Args:
        trained: the detector, on any device.
        given: the images that the file takes.
        to: kind of the file.
        precision: of the network.
        limit: detections of an image.
        least_side: least height and width of a file that takes any size.
        strides: input pixels per cell of the maps.
    """
    detector = trained.detector
    size = (None, None) if given.any_size else (given.height, given.width)
    further = ("keypoints",) if "keypoints" in detector.needs else ("box3d",) if "depth" in detector.needs else ()
    return FileDescription(
        aweigh=FORMAT_VERSION,
        detector=detector.name,
        precision=precision,
        classes=trained.classes,
        preprocessing=detector.preprocessing,
        input=DescribedInput(
            dtype=given.pixels,
            batch=given.batch,
            height=size[0],
            width=size[1],
            least_side=least_side if given.any_size else 1,
        ),
        outputs=(*OUTPUTS, *further),
        sizes=FileSizes.of(detector.sizes),
        strides=strides,
        limit=limit,
        needs=tuple(detector.needs),
        box_corners=detector.box_corners,
        clipping=clipping_of(detector),
        thresholds=dict(trained.thresholds),
        recipe=described_recipe(shown_recipe(trained.recipe, given, limit)),
        identity=FileIdentity(
            run=trained.identity.run,
            step=trained.identity.step,
            mlflow_run=trained.identity.mlflow_run,
            weights_sha256=sha256_of(detector.state_dict()),
        ),
        versions=versions(to),
    )


def shown_recipe(recipe: Recipe, given: FileInput, limit: int) -> Recipe:
    """Return the recipe with the evaluation that a file can do: one pass over one image, of its own size."""
    settings: EvaluationSettings = replace(recipe.evaluation, tta="none", soft_nms=False, limit=limit)
    if given.any_size:
        return replace(recipe, evaluation=settings)
    geometry = settings.geometry if settings.geometry in ("fixed", "width") else "fixed"
    size = (given.height, given.width)
    return replace(
        recipe,
        data=replace(recipe.data, input_size=size),
        evaluation=replace(settings, geometry=geometry, input_size=None),
    )


def clipping_of(detector: Detector) -> Clipping:
    """Return the border that a detector moves its boxes to when it knows where the photograph is."""
    if isinstance(detector, FCOS):
        return Clipping(to="content", last_pixel=detector.variant.pixel, drops_empty=detector.variant.drops_empty)
    if isinstance(detector, FoveaBox):
        # To the last pixel also where boxes end on edges.
        return Clipping(to="content", last_pixel=1.0)
    return Clipping(to="photograph") if isinstance(detector, CornerNet) else Clipping()


def sha256_of(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the name, type, shape and bytes of each tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions(to: Format) -> dict[str, str]:
    """Return the versions of what writes and runs a file."""
    found = {"aweigh": aweigh_version(), "torch": torch.__version__}
    if to == "onnx":
        found |= {name: metadata.version(name) for name in ("onnx", "onnxscript")}
        # The wheel for GPUs has another name.
        import onnxruntime

        found |= {"onnxruntime": onnxruntime.__version__, "opset": str(OPSET)}
    return found

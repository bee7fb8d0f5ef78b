"""The receipt names the code base of a file, and what its published numbers depend on."""

from pathlib import Path

import pytest
import torch

import detectors
from detectors import Detector
from detectors.weights import published
from tests.detectors.weights.test_published import saved

MEAN = "the mean 103.53, 116.28, 123.675 (blue, green, red) is subtracted"
EDGES = "boxes end at x + width; train and evaluate with --data.box_ends edge"
AREA = "of several boxes around a point the one with the smallest w h is learnt"
SCORE = "the score is class * centerness without a square root"
NMS = "suppression begins at an IoU of 0.5; set --detector.settings.nms_threshold 0.5"
CLIPPING = "boxes are suppressed before they are clipped"
BIASES = "biases learn like other weights"


@pytest.fixture(scope="module")
def fcos() -> dict[str, Detector]:
    return {
        variant: detectors.build("fcos_resnet50", 3, variant=variant, channels=64)
        for variant in ("original", "improved", "adelaidet", "mmdetection", "mmdetection_base", "torchvision")
    }


@pytest.mark.parametrize(
    ("variant", "keys", "library", "belongs_to", "published_with"),
    [
        ("improved", ["rpn.head.centerness.bias"], "FCOS's authors", "", []),
        ("torchvision", ["head.classification_head.conv.1.bias"], "torchvision", "torchvision", []),
        (
            "improved",
            ["proposal_generator.fcos_head.ctrness.bias"],
            "AdelaiDet",
            "adelaidet",
            [MEAN, EDGES, AREA, CLIPPING, BIASES],
        ),
        ("adelaidet", ["proposal_generator.fcos_head.ctrness.bias"], "AdelaiDet", "adelaidet", [EDGES, BIASES]),
        (
            "improved",
            ["bbox_head.conv_centerness.bias", "bbox_head.cls_convs.0.conv.bias"],
            "mmdetection",
            "mmdetection",
            [MEAN, EDGES, AREA, SCORE],
        ),
        (
            "mmdetection",
            ["bbox_head.conv_centerness.bias", "bbox_head.cls_convs.0.conv.bias"],
            "mmdetection",
            "mmdetection",
            [EDGES],
        ),
        # The configurations of the paper's version have the authors' mean.
        (
            "original",
            ["bbox_head.conv_centerness.bias"],
            "mmdetection",
            "mmdetection_base",
            [EDGES, AREA, SCORE, NMS],
        ),
        ("mmdetection_base", ["bbox_head.conv_centerness.bias"], "mmdetection", "mmdetection_base", [EDGES]),
        ("original", ["conv1.weight"], "an ImageNet classifier", "", []),
        ("original", ["stem.conv1.weight"], "detectron2", "", []),
    ],
    ids=str,
)
def test_the_receipt_names_the_code_base_its_variant_and_what_it_does_differently(
    variant: str,
    keys: list[str],
    library: str,
    belongs_to: str,
    published_with: list[str],
    fcos: dict[str, Detector],
    tmp_path: Path,
) -> None:
    ours = fcos[variant]
    shapes = {
        "conv1.weight": (64, 3, 7, 7),
        "stem.conv1.weight": (64, 3, 7, 7),
        "bbox_head.cls_convs.0.conv.bias": (64,),
    }
    shapes["head.classification_head.conv.1.bias"] = (64,)
    file = {key: torch.ones(shapes.get(key, (1,))) for key in keys}
    # Also behind a prefix and beside the objects of the runner.
    for content in (file, {"state_dict": {f"model.{key}": value for key, value in file.items()}, "meta": {}}):
        receipt = published.load(ours, saved(content, tmp_path / "w.pth"))
        assert receipt.library == library
        assert len(receipt.published_with) == len(published_with)
        for text, start in zip(receipt.published_with, published_with, strict=True):
            assert text.startswith(start)
            assert f"published with  {text}" in receipt.summary().splitlines()
        named = f"library  {library}, variant {belongs_to}" if belongs_to else f"library  {library}"
        assert named in receipt.summary().splitlines()
        assert receipt.variant == belongs_to

"""Portable detectors, and the decoding in tensors of every detector, against `decode` itself."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import detectors
from detectors import Detector, DetectorError
from detectors.portable import PortableDetector

SMALL: dict[str, dict[str, object]] = {
    "centernet_resnet18": {"width": 8, "deconv_channels": (8, 8, 8), "head_channels": 8},
    "centernet_resnet101": {"width": 4, "deconv_channels": (8, 8, 8), "head_channels": 8},
    "centernet_resdcn18": {"width": 8, "deconv_channels": (8, 8, 8), "head_channels": 8},
    "centernet_resdcn101": {"width": 4, "deconv_channels": (8, 8, 8), "head_channels": 8},
    "centernet_dla34": {"width": 4, "head_channels": 8},
    "centernet_dla34_original": {"width": 4, "head_channels": 8},
    "centernet_dla34_pose": {"width": 4, "head_channels": 8},
    "centernet_dla34_3d": {"width": 4, "head_channels": 8},
    "centernet_hourglass104": {"width": 4},
    "centernet_hourglass104_pose": {"width": 4},
    "fcos_resnet50": {"width": 4, "channels": 64},
    "fcos_resnet101": {"width": 4, "channels": 64},
    "foveabox_resnet50": {"width": 4, "channels": 64},
    "foveabox_resnet101": {"width": 4, "channels": 64},
    "cornernet_hourglass104": {"width": 4, "tag_distance": 1e9},
    "cornernet_squeeze": {"width": 8, "tag_distance": 1e9},
    "keypoint_triplets_hourglass104": {"width": 8, "tag_distance": 1e9, "corners": 200},
    "keypoint_triplets_hourglass52": {"width": 4, "tag_distance": 1e9, "corners": 200},
}
VARIANTS = [
    *((name, {}) for name in SMALL),
    *(
        ("fcos_resnet50", {"variant": variant})
        for variant in ("improved", "adelaidet", "mmdetection", "mmdetection_base", "torchvision")
    ),
    ("foveabox_resnet50", {"align": True}),
    ("foveabox_resnet50", {"candidates_by": "class", "box_ends": "edge", "candidates": 50}),
    ("cornernet_squeeze", {"suppression": "corrected"}),
    ("fcos_resnet50", {"candidates": 20}),
]


def test_every_detector_is_here() -> None:
    assert {*SMALL, "cornernet_saccade"} == set(detectors.names())


def built(name: str, **settings: object) -> Detector:
    """Weights at random whose maps have peaks of many heights."""
    torch.manual_seed(0)
    detector = detectors.build(name, 3, **{**SMALL[name], **settings}).eval()
    with torch.no_grad():
        for key, value in detector.state_dict().items():
            if value.is_floating_point() and value.dim() == 4:
                value.normal_(std=(0.5 if "offset_mask" in key else 1.4) / value[0].numel() ** 0.5)
            elif "bias" in key and value.numel() > 3:
                value.uniform_(-0.3, 0.3)
            if key.endswith(".1.weight") and any(part in key for part in ("_regrs.", "_offs.", "_tags.")):
                value.mul_(1e-5)  # or corners would be thousands of cells from their own
        spread_scores(detector)
    return detector


def spread_scores(detector: Detector) -> None:
    """Scale the layers of class scores so that few scores are high and none ties, which any order would satisfy."""
    layers = [detector.get_submodule(name) for name in detector.published.class_layers]
    logits: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [layer.register_forward_hook(lambda layer, _, values: logits[layer].append(values)) for layer in layers]
    detector(PortableDetector(detector).normalised(pixels(detector)))
    for hook in hooks:
        hook.remove()
    for layer, parts in logits.items():
        values = torch.cat([part.flatten() for part in parts]) if parts else torch.ones(2)
        factor = 1.5 / float(values.std().clamp_min(1e-3))
        layer.weight.mul_(factor)
        layer.bias.copy_(layer.bias * factor - 2 - float(values.mean()) * factor)


def pixels(detector: Detector, height: int = 2, width: int = 3) -> Tensor:
    """A batch of noise in squares of 16 pixels, with sides of this many times 64 pixels, or the next that fit."""
    torch.manual_seed(1)
    rows, columns = detector.sizes.padded(64 * height - 1, 64 * width - 1)
    coarse = torch.rand(2, 3, -(-rows // 16), -(-columns // 16)) * 255
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :rows, :columns].to(torch.uint8)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_a_portable_detector_finds_what_decode_finds(name: str, settings: dict[str, object]) -> None:
    detector = built(name, **settings)
    images = pixels(detector)
    portable = PortableDetector(detector, limit=30)
    with torch.no_grad():
        found = portable(images)
        expected = detector.decode(detector(portable.normalised(images)), (images.shape[2], images.shape[3]), 30)
    further = [values for values in (expected[0].keypoints, expected[0].box3d) if values is not None]
    assert len(found) == 3 + len(further)
    assert any(len(wanted.scores) for wanted in expected)
    for image, wanted in enumerate(expected):
        count = min(30, len(wanted.scores))
        rows = (wanted.boxes, wanted.scores, wanted.labels, wanted.keypoints, wanted.box3d)
        for values, of_image in zip((v for v in rows if v is not None), found, strict=True):
            assert_close(of_image[image, :count], values[:count], rtol=0, atol=0)
        boxes, scores, labels = (values[image, count:] for values in found[:3])
        assert (labels == -1).all()
        assert not boxes.any()
        assert not scores.any()


def test_pixels_become_the_networks_input_as_in_training() -> None:
    detector = built("centernet_resnet18")
    images = pixels(detector)
    red, _, blue = images.float().unbind(1)
    normalised = PortableDetector(detector).normalised(images)
    # CenterNet's first channel is blue, with COCO's mean of 0.408 and deviation of 0.289.
    assert_close(normalised[:, 0], (blue / 255 - 0.40789654) / 0.28863828)
    assert_close(normalised[:, 2], (red / 255 - 0.47026115) / 0.27809835)
    assert_close(PortableDetector(detector).normalised(images.float()), normalised, rtol=0, atol=0)


def test_the_padding_colour_is_zero_in_the_input() -> None:
    portable = PortableDetector(built("fcos_resnet50"))
    # FCOS's means are 102.98 for blue, 115.95 for green and 122.77 for red.
    assert_close(torch.tensor(portable.padding_color), torch.tensor([122.7717, 115.9465, 102.9801]))
    images = torch.tensor(portable.padding_color).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(portable.normalised(images).abs().max()) < 1e-5


def test_a_detector_without_decode_tensors_is_refused() -> None:
    detector = built("centernet_resnet18")
    with pytest.raises(DetectorError, match="centernet_resnet18 cannot be exported, because it has no decode_tensors"):
        Detector.decode_tensors(detector, [], (64, 64))


def test_a_limit_has_to_be_a_count() -> None:
    with pytest.raises(DetectorError, match="limit"):
        PortableDetector(built("centernet_resnet18"), limit=0)


@pytest.mark.parametrize("name", ["centernet_resnet18", "centernet_resdcn18", "fcos_resnet50", "foveabox_resnet50"])
def test_half_precision_finds_nearly_the_same(name: str) -> None:
    torch.manual_seed(0)
    detector = detectors.build(name, 3, **SMALL[name]).eval()
    with torch.no_grad():
        spread_scores(detector)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    images = pixels(detector)
    with torch.no_grad():
        boxes, scores, _ = PortableDetector(detector, 5, half=True)(images)
        expected = PortableDetector(detector, 5)(images)
    assert boxes.dtype == scores.dtype == torch.float32
    assert float(scores.max()) > 0.1
    assert_close(scores, expected[1], rtol=0, atol=0.02)
    for key, value in detector.state_dict().items():
        assert_close(value, before[key], rtol=0, atol=0)

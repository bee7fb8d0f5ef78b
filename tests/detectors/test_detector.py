"""The catalogue, and what the package's face imports."""

import subprocess
import sys

import pytest
import torch

import detectors


def test_names_are_sorted_and_hold_the_published_detectors() -> None:
    names = detectors.names()
    assert names == sorted(names)
    assert set(names) >= {
        "centernet_dla34",
        "centernet_dla34_3d",
        "centernet_dla34_pose",
        "centernet_hourglass104",
        "centernet_hourglass104_pose",
        "centernet_resdcn101",
        "centernet_resdcn18",
        "centernet_resnet101",
        "centernet_resnet18",
        "fcos_resnet101",
        "fcos_resnet50",
    }


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("centernet_resnet18", 80), ("centernet_dla34_pose", 1), ("centernet_dla34_3d", 3), ("fcos_resnet50", 80)],
)
def test_without_a_number_of_classes_it_is_the_publications(name: str, num_classes: int) -> None:
    with torch.device("meta"):
        assert detectors.build(name).num_classes == num_classes
        assert detectors.build(name, 7).num_classes == 7


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        detectors.DetectorError, match="unknown detector 'centernet_resnt18'; did you mean 'centernet_resnet18'"
    ):
        detectors.build("centernet_resnt18")


def test_a_name_like_none_is_refused_with_all_of_them() -> None:
    with pytest.raises(detectors.DetectorError, match=r"unknown detector 'yolo'; known are .*centernet_resdcn18, "):
        detectors.build("yolo")


def test_the_error_is_imported_without_torch_and_all_names_are_there() -> None:
    script = (
        "import sys, detectors; from detectors.errors import DetectorError; assert 'torch' not in sys.modules; "
        "assert detectors.DetectorError is DetectorError; assert 'torch' not in sys.modules; "
        "assert all(getattr(detectors, name) for name in detectors.__all__); assert 'torch' in sys.modules; "
        "assert set(detectors.__all__) <= set(dir(detectors)); assert callable(detectors.published.load)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'detectors' has no attribute 'load'"):
        _ = detectors.load


def test_what_a_detector_says_of_its_data() -> None:
    with torch.device("meta"):
        boxes, pose, in_3d, fcos = (
            detectors.build(name)
            for name in ("centernet_resnet18", "centernet_dla34_pose", "centernet_dla34_3d", "fcos_resnet50")
        )
    assert [one.max_objects for one in (boxes, pose, in_3d, fcos)] == [128, 32, 50, None]
    assert [one.needs for one in (boxes, pose, fcos)] == [(), ("keypoints",), ()]
    assert [one.takes_rotated_images for one in (boxes, pose, in_3d, fcos)] == [False, True, False, False]


def test_heatmaps_for_pictures_are_those_of_the_classes() -> None:
    with torch.device("meta"):
        boxes, fcos = detectors.build("centernet_resnet18", 3), detectors.build("fcos_resnet50", 3)
    objects = torch.tensor([[[8.0, 8, 24, 24]]]), torch.tensor([[1]]), (64, 96)
    heatmaps = boxes.heatmaps(boxes.encode(*objects))
    assert heatmaps is not None
    assert heatmaps.shape == (1, 3, 16, 24)
    assert (heatmaps == 1).nonzero().tolist() == [[0, 1, 4, 4]]
    assert fcos.heatmaps(fcos.encode(*objects)) is None


def test_biases_are_found_by_name() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_resnet18", 3)
    biases = detector.biases()
    assert len(biases) == 20 + 3 + 6  # norms of the trunk and of the way up, convolutions of the heads
    assert {"bn1.bias", "deconv_layers.1.bias", "hm.0.bias", "hm.2.bias"} <= set(biases)

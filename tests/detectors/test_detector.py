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

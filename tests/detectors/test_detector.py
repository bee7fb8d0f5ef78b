"""The register."""

import pytest

import detectors


def test_names_are_sorted_and_hold_the_centernets() -> None:
    names = detectors.names()
    assert names == sorted(names)
    assert {"centernet_resnet18", "centernet_resnet101", "centernet_resdcn18", "centernet_resdcn101"} <= set(names)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        detectors.DetectorError, match="unknown detector 'centernet_resnt18'; did you mean 'centernet_resnet18'"
    ):
        detectors.build("centernet_resnt18")


def test_a_name_like_none_is_refused_with_all_of_them() -> None:
    with pytest.raises(detectors.DetectorError, match=r"unknown detector 'yolo'; known are .*centernet_resdcn18, "):
        detectors.build("yolo")

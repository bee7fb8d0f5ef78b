"""The catalogue, what the package's face imports, and detectors of other packages."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detectors


def test_names_are_sorted_and_hold_the_published_detectors() -> None:
    names = detectors.names()
    assert names == sorted(names)
    assert set(names) >= {
        "centernet_dla34",
        "centernet_dla34_3d",
        "centernet_dla34_original",
        "centernet_dla34_pose",
        "centernet_hourglass104",
        "centernet_hourglass104_pose",
        "centernet_resdcn101",
        "centernet_resdcn18",
        "centernet_resnet101",
        "centernet_resnet18",
        "cornernet_hourglass104",
        "cornernet_saccade",
        "cornernet_squeeze",
        "fcos_resnet101",
        "fcos_resnet50",
        "keypoint_triplets_hourglass104",
        "keypoint_triplets_hourglass52",
        "foveabox_resnet101",
        "foveabox_resnet50",
    }


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("centernet_resnet18", 80),
        ("centernet_dla34_pose", 1),
        ("centernet_dla34_3d", 3),
        ("fcos_resnet50", 80),
        ("foveabox_resnet50", 80),
        ("cornernet_squeeze", 80),
        ("keypoint_triplets_hourglass52", 80),
    ],
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


BUILDERS = """
from detectors.centernet.centernet import centernet_resnet18

def tiny(num_classes=2, **settings):
    return centernet_resnet18(num_classes, width=4, deconv_channels=(4, 4, 4), head_channels=4, **settings)

def nothing(num_classes=2):
    return None
"""


def install(folder: Path, package: str, entry_points: dict[str, str]) -> None:
    """Make a package of one module look installed, as pip leaves it."""
    (folder / f"{package}.py").write_text(BUILDERS)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[aweigh.detectors]", *lines]))


def test_a_detector_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "tiny_detectors", {"tiny": "tiny_detectors:tiny"})
    monkeypatch.syspath_prepend(tmp_path)
    assert "tiny" in detectors.names()
    assert detectors.names() == sorted(detectors.names())
    detector = detectors.build("tiny", 5, max_objects=7)
    assert (detector.name, detector.num_classes, detector.max_objects) == ("tiny", 5, 7)
    assert detectors.build("tiny").num_classes == 2
    with pytest.raises(detectors.DetectorError, match="unknown detector 'tinny'; did you mean 'tiny'"):
        detectors.build("tinny")


def test_a_broken_package_is_named_and_breaks_no_other_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"tiny": "sound:tiny", "nothing": "sound:nothing", "absent": "sound:absent", "gone": "no_such_module:f"}
    install(tmp_path, "sound", points)
    monkeypatch.syspath_prepend(tmp_path)
    assert detectors.build("tiny").name == "tiny"
    with torch.device("meta"):
        assert detectors.build("centernet_resnet18").name == "centernet_resnet18"
    for name, message in (
        (
            "gone",
            "detector 'gone' of package sound cannot be imported from 'no_such_module:f': ModuleNotFoundError: No",
        ),
        ("absent", "detector 'absent' of package sound cannot be imported from 'sound:absent': AttributeError: "),
        ("nothing", "the builder of detector 'nothing' returned a NoneType, not a detectors.Detector. Correct the"),
    ):
        with pytest.raises(detectors.DetectorError) as refusal:
            detectors.build(name)
        assert str(refusal.value).startswith(message)
        assert "\n" not in str(refusal.value)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "first", {"centernet_resnet18": "first:tiny", "tiny": "first:tiny"})
    install(tmp_path, "second", {"tiny": "second:tiny"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        detectors.DetectorError,
        match="detector 'centernet_resnet18' comes from aweigh and again from first; uninstall first, or have its",
    ):
        detectors.build("centernet_resnet18")
    with pytest.raises(detectors.DetectorError, match=r"detector 'tiny' comes from .* and again from "):
        detectors.build("tiny")
    with torch.device("meta"):
        assert detectors.build("centernet_resnet101").name == "centernet_resnet101"

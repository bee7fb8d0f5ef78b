"""Programs of torch.export against the detectors that they were made from."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from detectors import DetectorError
from detectors.portable import PortableDetector
from pipelines.exporting.torch_file import METADATA, FileInput, least_side, to_torch_export
from tests.detectors.test_portable import built, pixels


@pytest.mark.parametrize(
    ("name", "settings", "any_size"),
    [
        ("centernet_resdcn18", {}, True),
        pytest.param("fcos_resnet50", {"variant": "torchvision"}, True, marks=pytest.mark.slow),
        pytest.param("foveabox_resnet50", {"align": True}, False, marks=pytest.mark.slow),
        pytest.param("cornernet_squeeze", {}, True, marks=pytest.mark.slow),
    ],
)
def test_a_program_finds_what_its_detector_finds(
    name: str, settings: dict[str, object], any_size: bool, tmp_path: Path
) -> None:
    portable = PortableDetector(built(name, **settings), limit=20)
    images = pixels(portable.detector, 4, 5)
    given = FileInput(height=images.shape[2], width=images.shape[3], any_size=any_size)
    to_torch_export(portable, tmp_path / "model.pt2", given, {"classes": "[]"})
    extra = {METADATA: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra[METADATA]) == {"classes": "[]"}
    others = pixels(portable.detector, 5, 4) if any_size else images[:1]
    with torch.no_grad():
        for batch in (images, others, others[:1]):
            for found, expected in zip(program(batch), portable(batch), strict=True):
                assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    portable = PortableDetector(built("centernet_resnet18"))
    with pytest.raises(DetectorError, match="the input is 100 x 128 pixels"):
        to_torch_export(portable, tmp_path / "model.pt2", FileInput(height=100, width=128), {})


def test_the_least_side_of_a_file_for_any_size() -> None:
    # 100 detections need 10 x 10 cells of 8 pixels, and the deepest level more than a cell of 128.
    assert least_side(PortableDetector(built("centernet_resnet18"))) == 160
    assert least_side(PortableDetector(built("cornernet_squeeze", width=4))) == 255
    assert least_side(PortableDetector(built("centernet_resnet18"), limit=1000)) == 256

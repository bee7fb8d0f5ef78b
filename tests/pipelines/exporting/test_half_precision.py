"""A network in float16 keeps what float16 would spoil in float32, and small variances survive."""

import pytest
import torch

import detectors
from detectors.centernet.centernet import CenterNet
from pipelines.exporting.half_precision import in_half_precision
from tests.pipelines.exporting.small_runs import lively


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("centernet_resnet18", {"width": 8, "deconv_channels": [8, 8, 8], "head_channels": 8}, 64),
        ("fcos_resnet50", {}, 64),
        ("foveabox_resnet50", {"align": True}, 64),
    ],
)
def test_maps_are_nearly_those_of_float32(name: str, settings: dict[str, object], size: int) -> None:
    torch.manual_seed(0)
    detector = lively(detectors.build(name, 3, **settings))
    images = torch.rand(1, 3, size, size)
    halved = in_half_precision(detector)
    with torch.no_grad():
        pairs = list(
            zip(
                torch.utils._pytree.tree_leaves(detector(images)),
                torch.utils._pytree.tree_leaves(halved(images)),
                strict=True,
            )
        )
    for ours, theirs in pairs:
        assert theirs.dtype == torch.float32
        assert float((ours - theirs).abs().max()) < 0.02 * float(ours.abs().max()) + 1e-3
    kinds = {parameter.dtype for parameter in halved.parameters()}
    assert kinds == {torch.float16, torch.float32}
    # The original stays as it is.
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}


def test_a_variance_that_float16_cannot_hold_survives() -> None:
    torch.manual_seed(0)
    detector = lively(detectors.build("centernet_resnet18", 3, width=8, deconv_channels=[8, 8, 8], head_channels=8))
    assert isinstance(detector, CenterNet)
    layer = next(module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert layer.running_var is not None
    layer.running_var.fill_(1e-8)
    layer.eps = 1e-9
    layer.weight.data.fill_(1e-4)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = detector(images)[-1]["hm"], in_half_precision(detector)(images)[-1]["hm"]
    assert bool(theirs.isfinite().all())
    assert float((ours - theirs).abs().max()) < 0.02 * float(ours.abs().max())

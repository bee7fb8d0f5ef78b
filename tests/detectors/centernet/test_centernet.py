"""Whole CenterNets, narrow ones: from images to a loss that falls, and to the same output after save and load."""

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from detectors import Detector
from detectors.centernet.centernet import CenterNet
from detectors.sizes import Multiples

NARROW: dict[str, dict[str, object]] = {
    "centernet_resnet18": {"width": 8, "deconv_channels": (16, 16, 16), "head_channels": 8},
    "centernet_resdcn18": {"width": 8, "deconv_channels": (16, 16, 16), "head_channels": 8},
    "centernet_resnet101": {"width": 4, "deconv_channels": (16, 16, 16), "head_channels": 8},
    "centernet_resdcn101": {"width": 4, "deconv_channels": (16, 16, 16), "head_channels": 8},
    "centernet_dla34": {"width": 4, "head_channels": 8},
    "centernet_dla34_original": {"width": 4, "head_channels": 8},
    "centernet_hourglass104": {"width": 8},
}
"""Settings under which each network is small enough to run in a test."""

SIDE = {"centernet_hourglass104": 128}
"""Side of the square input, where 64 will not do."""

_DEAD_OF_DLA = {
    *(f"base.fc.{part}" for part in ("weight", "bias")),
    *(f"base.level{n}.project.{part}" for n in (3, 4) for part in ("0.weight", "1.weight", "1.bias")),
}
DEAD = {"centernet_dla34": _DEAD_OF_DLA, "centernet_dla34_original": _DEAD_OF_DLA}
"""Parameters that the published network does not use: 8 in DLA-34."""


def narrow(name: str, num_classes: int = 3, **settings: object) -> Detector:
    torch.manual_seed(0)
    return detectors.build(name, num_classes, **NARROW[name], **settings)


def side_of(name: str) -> int:
    return SIDE.get(name, 64)


def batch(side: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Two noisy images, one with two objects, one with one and padding."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator)
    boxes = torch.tensor([[[4.0, 6, 40, 30], [30, 30, 60, 63]], [[10, 10, 50, 20], [0, 0, 0, 0]]]) * side / 64
    return images, boxes, torch.tensor([[0, 2], [1, -1]])


def warmed_up(detector: Detector) -> Detector:
    """In evaluation mode, with batch statistics that are not the initial ones."""
    detector.train()
    with torch.no_grad():
        detector(batch(side_of(detector.name))[0])
    return detector.eval()


@pytest.mark.parametrize("name", NARROW)
def test_maps_are_float32_logits_at_a_quarter_of_the_input(name: str) -> None:
    detector = narrow(name)
    height = side_of(name)
    width = height + detector.sizes.divisor
    outputs = detector(torch.randn(2, 3, height, width))
    assert len(outputs) == (2 if name == "centernet_hourglass104" else 1)
    for maps in outputs:
        assert {head: (tuple(values.shape), values.dtype) for head, values in maps.items()} == {
            "hm": ((2, 3, height // 4, width // 4), torch.float32),
            "wh": ((2, 2, height // 4, width // 4), torch.float32),
            "reg": ((2, 2, height // 4, width // 4), torch.float32),
        }


@pytest.mark.parametrize("name", NARROW)
def test_training_lowers_the_loss(name: str) -> None:
    detector = narrow(name)
    side = side_of(name)
    images, boxes, labels = batch(side)
    targets = detector.encode(boxes, labels, (side, side))
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    losses = []
    for step in range(4):
        parts = detector.losses(detector(images), targets)
        optimizer.zero_grad()
        parts["loss"].backward()
        if step == 0:
            dead = {key for key, parameter in detector.named_parameters() if parameter.grad is None}
            assert dead == DEAD.get(name, set())
        optimizer.step()
        losses.append(parts["loss"].item())
    assert losses[1] < losses[0]
    assert losses[3] < 0.98 * losses[0]


@pytest.mark.parametrize("name", NARROW)
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    detector = warmed_up(narrow(name))
    side = side_of(name)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        together = detector(images)
        alone = [detector(image[None]) for image in images]
    for head, values in together[-1].items():
        # Logits of the original DLA-34, which starts from He's weights, are ten times those of the others.
        atol = 1e-5 * max(1.0, float(values.abs().max()) / 3)
        assert_close(values, torch.cat([maps[-1][head] for maps in alone]), rtol=1e-4, atol=atol)
    for image, detections in enumerate(detector.decode(together, (side, side), limit=10)):
        of_image = {head: values[image : image + 1] for head, values in together[-1].items()}
        single = detector.decode([of_image], (side, side), limit=10)[0]
        assert torch.equal(detections.boxes, single.boxes)
        assert torch.equal(detections.scores, single.scores)


@pytest.mark.parametrize("name", NARROW)
def test_saved_and_loaded_gives_the_same_output(name: str) -> None:
    detector = warmed_up(narrow(name))
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    other = detectors.build(name, 3, **NARROW[name]).eval()
    images = batch(side_of(name))[0]
    with torch.no_grad():
        assert not torch.equal(other(images)[-1]["hm"], detector(images)[-1]["hm"])
        other.load_state_dict(torch.load(file, weights_only=True))
        expected, given = detector(images)[-1], other(images)[-1]
    for head, values in expected.items():
        assert torch.equal(given[head], values)


@pytest.mark.parametrize("name", NARROW)
def test_a_copy_is_independent(name: str) -> None:
    detector = warmed_up(narrow(name))
    twin = copy.deepcopy(detector)
    images = batch(side_of(name))[0]
    with torch.no_grad():
        before = detector(images)[-1]["hm"]
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(detector(images)[-1]["hm"], before)
        assert not torch.equal(twin(images)[-1]["hm"], before)


@pytest.mark.parametrize("name", NARROW)
def test_under_bfloat16_autocast_maps_and_losses_stay_float32(name: str) -> None:
    detector = narrow(name)
    side = side_of(name)
    images, boxes, labels = batch(side)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(images)
        parts = detector.losses(outputs, detector.encode(boxes, labels, (side, side)))
    parts["loss"].backward()
    assert {values.dtype for values in outputs[0].values()} == {torch.float32}
    # The last convolution ran in float32: its results are not all bfloat16 numbers.
    assert not torch.equal(outputs[0]["wh"], outputs[0]["wh"].bfloat16().float())
    assert {value.dtype for value in parts.values()} == {torch.float32}
    assert all(value.isfinite() for value in parts.values())
    exact = detector.losses(detector(images), detector.encode(boxes, labels, (side, side)))
    assert parts["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)


def test_images_without_objects_train_the_heatmap_alone() -> None:
    detector = narrow("centernet_resnet18")
    images, boxes, labels = batch()
    parts = detector.losses(detector(images), detector.encode(boxes, torch.full_like(labels, -1), (64, 64)))
    assert (parts["size"].item(), parts["offset"].item()) == (0, 0)
    assert parts["loss"].item() == parts["heatmap"].item() > 0


def outputs_and_targets(detector: Detector) -> tuple[list[dict[str, Tensor]], object]:
    _, boxes, labels = batch()
    generator = torch.Generator().manual_seed(3)
    maps = {"hm": torch.randn(2, 3, 16, 16, generator=generator)}
    maps |= {head: torch.randn(2, 2, 16, 16, generator=generator) for head in ("wh", "reg")}
    return [maps], detector.encode(boxes, labels, (64, 64))


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    detector = narrow("centernet_resnet18")
    parts = detector.losses(*outputs_and_targets(detector))
    assert set(parts) == {"heatmap", "size", "offset", "loss"}
    expected = parts["heatmap"] + 0.1 * parts["size"] + parts["offset"]
    assert_close(parts["loss"], expected)

    chosen = narrow("centernet_resnet18", heatmap_weight=2.0, size_weight=0.5, offset_weight=0.25)
    weighted = chosen.losses(*outputs_and_targets(chosen))
    assert_close(weighted["loss"], 2 * parts["heatmap"] + 0.5 * parts["size"] + 0.25 * parts["offset"])


def test_size_and_offset_losses_by_hand() -> None:
    detector = narrow("centernet_resnet18")
    _, boxes, labels = batch()
    targets = detector.encode(boxes, labels, (64, 64))
    zeros = {"hm": torch.zeros(2, 3, 16, 16), "wh": torch.zeros(2, 2, 16, 16), "reg": torch.zeros(2, 2, 16, 16)}
    parts = detector.losses([zeros], targets)
    # In cells: 9 x 6, then 7.5 x 7.5 (30 .. 60 by 30 .. 63 is clipped at 15), then 10 x 2.5; centres (5.5, 4.5),
    # (11.25, 11.25), (7.5, 3.75).
    assert parts["size"].item() == pytest.approx((9 + 6 + 7.5 + 7.5 + 10 + 2.5) / 6.0001, rel=1e-6)
    assert parts["offset"].item() == pytest.approx((0.5 + 0.5 + 0.25 + 0.25 + 0.5 + 0.75) / 6.0001, rel=1e-6)
    smooth = narrow("centernet_resnet18", regression_loss="smooth_l1")
    # Every size differs by more than 1: one half less each; offsets by less: half their squares.
    parts = smooth.losses([zeros], targets)
    assert parts["size"].item() == pytest.approx((42.5 - 6 * 0.5) / 3.0001, rel=1e-6)
    assert parts["offset"].item() == pytest.approx((3 * 0.25 + 2 * 0.0625 + 0.5625) / 2 / 3.0001, rel=1e-6)


def test_stacks_are_averaged() -> None:
    detector = narrow("centernet_resnet18")
    outputs, targets = outputs_and_targets(detector)
    other = [{head: values + 1 for head, values in outputs[0].items()}]
    both = detector.losses(outputs + other, targets)
    first, second = detector.losses(outputs, targets), detector.losses(other, targets)
    for name, value in both.items():
        assert_close(value, (first[name] + second[name]) / 2)


def test_preprocessing_is_the_published_one_for_coco() -> None:
    preprocessing = narrow("centernet_resnet18").preprocessing
    assert preprocessing.channel_order == "bgr"
    assert preprocessing.mean == (0.40789654, 0.44719302, 0.47026115)
    assert preprocessing.std == (0.28863828, 0.27408164, 0.27809835)
    assert preprocessing.scale == 1 / 255
    assert narrow("centernet_resnet18").sizes == Multiples(32)
    assert narrow("centernet_hourglass104").sizes == Multiples(128)


def test_preprocessing_for_voc_is_imagenets_on_bgr() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_hourglass104", pixel_statistics="imagenet")
    preprocessing = detector.preprocessing
    assert (preprocessing.channel_order, preprocessing.mean) == ("bgr", (0.485, 0.456, 0.406))
    assert preprocessing.std == (0.229, 0.224, 0.225)
    assert detector.sizes == Multiples(128)


def test_an_image_whose_sides_do_not_fit_is_refused() -> None:
    message = r"the input is 64 x 100 pixels; .* multiples of 32\. Pad or resize"
    with pytest.raises(detectors.DetectorError, match=message):
        narrow("centernet_resnet18")(torch.zeros(1, 3, 64, 100))
    with pytest.raises(detectors.DetectorError, match=r"the input is 128 x 192 pixels; .* multiples of 128"):
        narrow("centernet_hourglass104")(torch.zeros(1, 3, 128, 192))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 32}, "centernet_resnet18 has no setting 'widht'; did you mean 'width'?"),
        ({"width": 0}, "width is 0; it has to be a whole number of at least 1."),
        ({"width": "64"}, "width is '64'; it has to be a whole number of at least 1."),
        ({"head_channels": 2.5}, "head_channels is 2.5; it has to be a whole number of at least 1."),
        ({"max_objects": -1}, "max_objects is -1; it has to be a whole number of at least 1."),
        ({"deconv_channels": [256, 0, 256]}, "deconv_channels[1] is 0; it has to be a whole number of at least 1."),
        ({"deconv_channels": (256, 128)}, "deconv_channels has 2 entries; give 3, for the steps from stride 32 to 4."),
        ({"size_weight": -0.1}, "size_weight is -0.1; a weight has to be a number of at least 0."),
        ({"offset_weight": float("nan")}, "offset_weight is nan; a weight has to be a number of at least 0."),
        ({"heatmap_weight": "1"}, "heatmap_weight is '1'; a weight has to be a number of at least 0."),
        ({"regression_loss": "l2"}, "regression_loss is 'l2'; known are 'l1', 'smooth_l1'."),
        ({"min_overlap": 1.0}, "min_overlap is 1.0; it has to be between 0 and 1."),
        ({"num_classes": 0}, "num_classes is 0; it has to be a whole number of at least 1."),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(detectors.DetectorError) as refusal:
        detectors.build("centernet_resnet18", **{"num_classes": 3, **settings})
    assert str(refusal.value) == message


def test_settings_of_other_networks_are_refused() -> None:
    message = "centernet_hourglass104 has no setting 'head_channels'; known are activation_checkpointing, heatmap_wei"
    with pytest.raises(detectors.DetectorError, match=message):
        detectors.build("centernet_hourglass104", 3, head_channels=64)
    with pytest.raises(detectors.DetectorError, match="centernet_dla34 has no setting 'deconv_channels'"):
        detectors.build("centernet_dla34", 3, deconv_channels=(256, 256, 256))
    with pytest.raises(
        detectors.DetectorError,
        match=r"width is 15; an hourglass has levels of half and 1.5 times as many. Choose an even",
    ):
        detectors.build("centernet_hourglass104", 3, width=15)


def test_one_network_is_a_centernet_and_knows_its_name() -> None:
    detector = narrow("centernet_resdcn18")
    assert isinstance(detector, CenterNet)
    assert (detector.name, detector.num_classes, detector.sizes) == ("centernet_resdcn18", 3, Multiples(32))


def test_activation_checkpointing_changes_no_bit_of_losses_gradients_and_statistics() -> None:
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    boxes = torch.tensor([[[20.0, 30.0, 90.0, 100.0]], [[5.0, 5.0, 60.0, 40.0]]])
    labels = torch.tensor([[1], [2]])
    found = []
    for activation_checkpointing in (False, True):
        torch.manual_seed(0)
        detector = detectors.build(
            "centernet_hourglass104", 3, width=8, activation_checkpointing=activation_checkpointing
        ).train()
        kept: list[int] = []

        def keep(value: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(value.nbytes)
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            losses = detector.losses(detector(images), detector.encode(boxes, labels, (128, 128)))
        losses["loss"].backward()
        gradients = {name: value.grad for name, value in detector.named_parameters()}
        found.append(({**losses, **gradients, **dict(detector.named_buffers())}, sum(kept)))
    (expected, plain_bytes), (got, checkpointed_bytes) = found
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    assert checkpointed_bytes < plain_bytes / 2

"""What a detector should be tested for, before it is trained for days."""

import torch
from center_cells import CenterCells, Outputs, Targets

import detectors

SIZE = (64, 96)
# One object, one whose centre is outside the input, and padding.
BOXES = torch.tensor([[[10.0, 20.0, 40.0, 60.0], [90.0, 10.0, 130.0, 30.0], [0.0, 0.0, 0.0, 0.0]]])
LABELS = torch.tensor([[2, 0, -1]])


def perfect(targets: Targets, num_classes: int) -> Outputs:
    """Maps that say exactly what the targets say."""
    logits = torch.full((1, num_classes, 8 * 12), -9.0)
    log_distances = torch.zeros(1, 4, 8 * 12)
    for label, cell, distances in zip(targets.labels[0], targets.cells[0], targets.log_distances[0], strict=True):
        if label >= 0:
            logits[0, label, cell] = 9.0
            log_distances[0, :, cell] = distances
    return Outputs(logits.view(1, num_classes, 8, 12), log_distances.view(1, 4, 8, 12))


def test_aweigh_finds_it_by_name() -> None:
    assert "center_cells" in detectors.names()
    assert detectors.build("center_cells", num_classes=3, width=8).num_classes == 3


def test_decoding_perfect_outputs_yields_the_boxes() -> None:
    detector = CenterCells(num_classes=3, width=8)
    targets = detector.encode(BOXES, LABELS, SIZE)
    found = detector.decode(perfect(targets, 3), SIZE, limit=5)[0]
    torch.testing.assert_close(found.boxes[0], BOXES[0, 0])
    assert found.labels[0] == 2
    assert found.scores[0] > 0.99
    assert found.scores[1] < 0.01


def test_perfect_outputs_have_almost_no_loss() -> None:
    detector = CenterCells(num_classes=3, width=8)
    targets = detector.encode(BOXES, LABELS, SIZE)
    assert detector.losses(perfect(targets, 3), targets)["loss"] < 1e-3


def test_an_image_without_objects_has_a_finite_loss_and_gradient() -> None:
    detector = CenterCells(num_classes=3, width=8)
    outputs = detector(torch.randn(1, 3, *SIZE))
    losses = detector.losses(outputs, detector.encode(BOXES, torch.full_like(LABELS, -1), SIZE))
    losses["loss"].backward()
    assert losses["distances"] == 0
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters() if parameter.grad is not None)

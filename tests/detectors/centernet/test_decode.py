"""Peaks and boxes against a search in plain numpy, and against what a trained CenterNet put out."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import detectors
from detectors.centernet.centernet import CenterNet
from detectors.shared.peaks import suppress_neighbours, top_peaks


def detector(num_classes: int = 3) -> CenterNet:
    with torch.device("meta"):
        built = detectors.build("centernet_resnet18", num_classes)
    assert isinstance(built, CenterNet)
    return built


def maps(batch: int, classes: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hm": torch.randn(batch, classes, height, width, generator=generator),
        "wh": 5 * torch.randn(batch, 2, height, width, generator=generator),
        "reg": torch.rand(batch, 2, height, width, generator=generator),
    }


def by_search(maps: dict[str, Tensor], image: int, limit: int) -> list[tuple[float, int, list[float]]]:
    """Score, label and box of every cell that no neighbour exceeds, the best first."""
    heatmap = maps["hm"][image].sigmoid().numpy()
    size, offset = maps["wh"][image].numpy(), maps["reg"][image].numpy()
    found = []
    for label, row, column in np.ndindex(*heatmap.shape):
        around = heatmap[label, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
        if heatmap[label, row, column] == around.max():
            x, y = column + offset[0, row, column], row + offset[1, row, column]
            w, h = size[:, row, column]
            box = [4 * (x - w / 2), 4 * (y - h / 2), 4 * (x + w / 2), 4 * (y + h / 2)]
            found.append((float(heatmap[label, row, column]), label, box))
    return sorted(found, key=lambda entry: -entry[0])[:limit]


@pytest.mark.parametrize("limit", [1, 20, 100])
def test_decoding_finds_what_a_search_finds(limit: int) -> None:
    outputs = maps(2, 3, 24, 32)
    decoded = detector().decode([outputs], (96, 128), limit)
    for image, detections in enumerate(decoded):
        expected = by_search(outputs, image, limit)
        assert len(expected) == limit
        assert detections.labels.tolist() == [label for _, label, _ in expected]
        assert_close(detections.scores, torch.tensor([score for score, _, _ in expected]))
        assert_close(detections.boxes, torch.tensor([box for _, _, box in expected]), rtol=1e-5, atol=1e-4)


def test_a_box_by_hand() -> None:
    outputs = {"hm": torch.full((1, 3, 8, 8), -9.0), "wh": torch.zeros(1, 2, 8, 8), "reg": torch.zeros(1, 2, 8, 8)}
    outputs["hm"][0, 1, 5, 2] = 0.0
    outputs["reg"][0, :, 5, 2] = torch.tensor([0.25, 0.5])
    outputs["wh"][0, :, 5, 2] = torch.tensor([3.0, -1.0])
    best = detector().decode([outputs], (32, 32), limit=1)[0]
    # Centre (2.25, 5.5) cells = (9, 22) pixels; 12 wide; a negative height is left as it is.
    assert best.boxes.tolist() == [[3, 24, 15, 20]]
    assert (best.scores.tolist(), best.labels.tolist()) == ([0.5], [1])
    assert (best.boxes.dtype, best.labels.dtype) == (torch.float32, torch.int64)


def test_boxes_are_not_clipped() -> None:
    outputs = {"hm": torch.zeros(1, 3, 8, 8), "wh": torch.full((1, 2, 8, 8), 100.0), "reg": torch.zeros(1, 2, 8, 8)}
    boxes = detector().decode([outputs], (32, 32), limit=1)[0].boxes
    assert boxes.min() < 0
    assert boxes.max() > 32


def test_the_last_stack_decides() -> None:
    first, last = maps(1, 3, 8, 8, seed=1), maps(1, 3, 8, 8, seed=2)
    both, alone = detector().decode([first, last], (32, 32)), detector().decode([last], (32, 32))
    assert torch.equal(both[0].boxes, alone[0].boxes)


def test_all_cells_of_a_plateau_stay() -> None:
    heatmap = torch.zeros(1, 1, 4, 4)
    heatmap[0, 0, 1, 1:3] = 0.5
    heatmap[0, 0, 2, 1] = 0.25
    assert suppress_neighbours(heatmap).nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 1, 5), (1, 2, 1, 1)])
def test_neighbours_are_those_of_a_3x3_window(shape: tuple[int, ...]) -> None:
    # One decimal, so that there are many plateaus.
    heatmap = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(10).round() / 10
    window = torch.nn.functional.max_pool2d(heatmap, 3, stride=1, padding=1)
    assert torch.equal(suppress_neighbours(heatmap), torch.where(window == heatmap, heatmap, 0))


def test_small_maps_give_as_many_rows_as_they_have_cells() -> None:
    outputs = maps(2, 3, 8, 8)
    assert [len(detections.scores) for detections in detector().decode([outputs], (32, 32), limit=1000)] == [192, 192]
    # 64 cells a class are fewer than 100: all three classes give their peaks, the rest scores 0.
    scores = detector().decode([outputs], (32, 32), limit=100)[0].scores
    peaks = suppress_neighbours(outputs["hm"].sigmoid())[0]
    assert (scores > 0).sum() == (peaks > 0).sum()


def test_one_class_gives_no_other_label() -> None:
    assert not detector(1).decode([maps(1, 1, 8, 8)], (32, 32), limit=30)[0].labels.any()


def test_bfloat16_maps_are_decoded_in_float32() -> None:
    outputs = {name: values.bfloat16() for name, values in maps(1, 3, 24, 32).items()}
    detections = detector().decode([outputs], (96, 128))[0]
    exact = detector().decode([{name: values.float() for name, values in outputs.items()}], (96, 128))[0]
    assert detections.boxes.dtype == detections.scores.dtype == torch.float32
    assert torch.equal(detections.boxes, exact.boxes)


def test_maps_of_another_input_are_refused() -> None:
    message = "the maps are 8 x 8 cells, as for an input of 32 x 32, not of 64 x 32"
    with pytest.raises(detectors.DetectorError, match=message):
        detector().decode([maps(1, 3, 8, 8)], (64, 32))


def test_targets_decode_to_their_boxes() -> None:
    boxes = torch.tensor([[[10.0, 16, 50, 39], [60, 20, 100, 90], [2, 60, 30, 80]]])
    labels = torch.tensor([[2, 0, 2]])
    targets = detector().encode(boxes, labels, (96, 128))
    outputs = {"hm": targets.heatmap.logit(eps=1e-6), "wh": torch.zeros(1, 2, 24, 32), "reg": torch.zeros(1, 2, 24, 32)}
    for slot in range(3):
        row, column = divmod(int(targets.center_index[0, slot]), 32)
        outputs["wh"][0, :, row, column] = targets.size[0, slot]
        outputs["reg"][0, :, row, column] = targets.offset[0, slot]
    detections = detector().decode([outputs], (96, 128), limit=3)[0]
    order = detections.boxes[:, 0].argsort()
    assert_close(detections.boxes[order], boxes[0, [2, 0, 1]])
    assert detections.labels[order].tolist() == [2, 2, 0]


def fixtures() -> list[Path]:
    shared = Path(os.environ.get("AWEIGH_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
    return sorted((shared / "detector-fixtures").glob("centernet_heads_*.npz"))


@pytest.mark.skipif(not fixtures(), reason="no detector-fixtures in AWEIGH_SHARED_DATA")
def test_peaks_of_a_trained_network_are_those_its_decoder_found() -> None:
    """Heads of a CenterNet on MobileNetV3 (sides as distances, no offset), with its own top 100 beside them."""
    for path in fixtures():
        recorded = np.load(path)
        expected = recorded["top100"]
        peaks = top_peaks(torch.from_numpy(recorded["heat"])[None], limit=100)
        np.testing.assert_allclose(peaks.scores[0], expected[:, 4], atol=1e-6)
        distances = torch.from_numpy(recorded["ltrb"]).flatten(1)[:, peaks.index[0]].T
        point = 4 * torch.stack((peaks.x[0], peaks.y[0]), dim=-1)
        boxes = torch.cat((point - distances[:, :2], point + distances[:, 2:]), dim=-1).numpy()
        # Equal scores may stand in either order.
        ours = np.column_stack((boxes, peaks.labels[0].numpy())).round(2)
        theirs = expected[:, [0, 1, 2, 3, 5]].round(2)
        np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=0.02)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_ties_come_in_the_order_of_topk_over_classes_and_then_over_all(steps: int) -> None:
    outputs = maps(2, 80, 24, 32, seed=steps)
    outputs["hm"] = (outputs["hm"] * steps).round() / steps  # few different values, so plateaus and ties abound
    scores = outputs["hm"].sigmoid()
    peaks = scores * (torch.nn.functional.max_pool2d(scores, 3, stride=1, padding=1) == scores)
    of_class, cells = peaks.view(2, 80, -1).topk(100)
    best, places = of_class.view(2, -1).topk(100)
    cells = cells.view(2, -1).gather(1, places)
    for row, found in enumerate(detector(80).decode([outputs], (96, 128))):
        assert torch.equal(found.scores, best[row])
        assert torch.equal(found.labels, places[row] // 100)
        size, offset = (outputs[name][row].flatten(1)[:, cells[row]].T for name in ("wh", "reg"))
        center = torch.stack((cells[row] % 32, cells[row] // 32), dim=1) + offset
        assert torch.equal(found.boxes, torch.cat((center - size / 2, center + size / 2), dim=1) * 4)
        assert len(found.scores.unique()) < 50

"""CenterCells: each object is found by the cell that holds its centre. A small detector to start your own from."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors import Detections, Detector, Preprocessing
from detectors.sizes import Multiples

STRIDE = 8  # pixels per cell


class Outputs(NamedTuple):
    """Raw maps of the network."""

    logits: Tensor  # batch, classes, rows, columns
    log_distances: Tensor  # batch, 4, rows, columns: to the left, top, right and bottom side, in cells


class Targets(NamedTuple):
    """What the loss needs of each object; every image has room for the same number."""

    labels: Tensor  # batch, objects; -1 where there is no object
    cells: Tensor  # batch, objects: index of the cell in the flattened map
    log_distances: Tensor  # batch, objects, 4


class CenterCells(Detector):
    """A small network with two heads: which class has its centre in a cell, and how far the sides are."""

    preprocessing = Preprocessing("rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    sizes = Multiples(STRIDE)

    def __init__(self, num_classes: int = 80, width: int = 32) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in ((width, 2), (2 * width, 2), (4 * width, 2), (4 * width, 1), (4 * width, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        self.backbone = nn.Sequential(*layers)
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.distances = nn.Conv2d(channels, 4, 1)
        # Nearly all cells are background: without this, the first steps would be spent on learning that alone.
        nn.init.constant_(self.classes.bias, -4.6)

    def forward(self, images: Tensor) -> Outputs:
        """Compute both maps."""
        features = self.backbone(images)
        return Outputs(self.classes(features), self.distances(features))

    @torch.no_grad()
    def encode(self, boxes: Tensor, labels: Tensor, input_size: tuple[int, int], **extra: Tensor) -> Targets:
        """Find the cell of each object, for the whole batch at once."""
        rows, columns = input_size[0] // STRIDE, input_size[1] // STRIDE
        column, row = ((boxes[..., :2] + boxes[..., 2:]) / 2 / STRIDE).floor().long().unbind(-1)
        # Boxes are not clipped: a crop may leave the centre of an object outside the input.
        inside = (labels >= 0) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        points = torch.stack((column, row), -1) * STRIDE + STRIDE / 2
        distances = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)
        return Targets(
            labels=torch.where(inside, labels, -1),
            cells=torch.where(inside, row * columns + column, 0),
            # The side of a very small object may be on the near side of the cell's middle, where no logarithm exists.
            log_distances=distances.clamp(min=1).div(STRIDE).log(),
        )

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Compare with focal loss (classes) and L1 (log of distances), in float32."""
        is_object = (targets.labels >= 0).float()
        num_objects = is_object.sum().clamp(min=1)
        logits = outputs.logits.float().flatten(2)  # batch, classes, cells
        # A padding row writes 0 to class 0 of cell 0; the maximum keeps what an object writes there.
        place = targets.labels.clamp(min=0) * logits.shape[2] + targets.cells
        wanted = torch.zeros_like(logits).flatten(1).scatter_reduce(1, place, is_object, "amax").view_as(logits)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        error = (wanted - logits.sigmoid()).abs()
        classes = (error.square() * entropy).sum() / num_objects
        difference = _at(outputs.log_distances, targets.cells) - targets.log_distances
        distances = (difference.abs().mean(-1) * is_object).sum() / num_objects
        return {"classes": classes, "distances": distances, "loss": classes + distances}

    def decode(self, outputs: Outputs, input_size: tuple[int, int], limit: int = 100) -> list[Detections]:
        """Take the best peaks of the class maps, with the box that each predicts, in the input frame."""
        scores = outputs.logits.float().sigmoid()
        # A cell that scores lower than a neighbour has found the neighbour's object.
        scores = scores * (scores == functional.max_pool2d(scores, 3, stride=1, padding=1))
        columns, num_cells = scores.shape[3], scores.shape[2] * scores.shape[3]
        best, index = scores.flatten(1).topk(min(limit, self.num_classes * num_cells))
        labels, cells = index // num_cells, index % num_cells
        points = torch.stack((cells % columns, cells // columns), -1) * STRIDE + STRIDE / 2
        # exp would overflow while the network is young; e^6 cells are wider than any input.
        distances = _at(outputs.log_distances, cells).clamp(max=6).exp() * STRIDE
        boxes = torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)
        return [Detections(*one) for one in zip(boxes, best, labels, strict=True)]


def _at(maps: Tensor, cells: Tensor) -> Tensor:
    """Read maps `(batch, channels, rows, columns)` at cells `(batch, n)`: `(batch, n, channels)` in float32."""
    flat = maps.float().flatten(2)
    return flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)

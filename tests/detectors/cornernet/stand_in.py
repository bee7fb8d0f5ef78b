"""A network without layers, which repeats the maps that it is told."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detectors.cornernet.targets import CornerTargets
from detectors.shared.network import Network, Outputs
from detectors.sizes import OneLessThanMultiples
from detectors.stages import Stages


class StandIn(Network):
    """Answers images with `answer(images)`, one dict per stack."""

    sizes = OneLessThanMultiples(32)

    def __init__(
        self, answer: Callable[[Tensor], Outputs] = lambda images: [], *, stride: int = 4, stacks: int = 1
    ) -> None:
        self.answer, self.stride, self.stacks = answer, stride, stacks

    def stages(self) -> Stages:
        return {"layer": ("layer",)}

    def make_layers(self) -> dict[str, nn.Module]:
        return {"layer": nn.Conv2d(1, 1, 1)}

    def run(self, detector: nn.Module, images: Tensor) -> Outputs:
        return self.answer(images)


def perfect_maps(targets: CornerTargets) -> dict[str, Tensor]:
    """Raw maps that say what the targets say: sure heatmaps, exact offsets, and a tag for each object."""
    maps: dict[str, Tensor] = {}
    for name, point in targets.points.items():
        batch, _, height, width = point.heatmap.shape
        maps[f"{name}_heatmap"] = torch.where(point.heatmap == 1, 8.0, -12.0)
        offset, tag = torch.zeros(batch, 2, height * width), torch.zeros(batch, 1, height * width)
        for image in range(batch):
            for row in targets.object_mask[image].nonzero().flatten().tolist():
                cell = int(point.index[image, row])
                offset[image, :, cell], tag[image, 0, cell] = point.offset[image, row], float(row)
        maps[f"{name}_offset"] = offset.view(batch, 2, height, width)
        if name != "center":
            maps[f"{name}_tag"] = tag.view(batch, 1, height, width)
    return maps


def random_maps(
    classes: int,
    size: tuple[int, int],
    seed: int,
    batch: int = 1,
    *,
    names: tuple[str, ...] = ("top_left", "bottom_right"),
) -> dict[str, Tensor]:
    """Raw maps of noise, with tags that agree now and then."""
    generator = torch.Generator().manual_seed(seed)
    maps = {}
    for name in names:
        maps[f"{name}_heatmap"] = torch.randn(batch, classes, *size, generator=generator) * 2
        maps[f"{name}_offset"] = torch.rand(batch, 2, *size, generator=generator)
        if name != "center":
            maps[f"{name}_tag"] = torch.randn(batch, 1, *size, generator=generator) * 0.6
    return maps

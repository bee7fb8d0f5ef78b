"""A small network and its training by the engine, the same in every process."""

from typing import Self

import torch
from torch import Tensor, nn

from cluster.engine.engine import Engine, TrainingState, split_batch
from cluster.settings import EngineSettings


class Toy(nn.Module):
    """Convolution, BatchNorm and a parameter that never gets a gradient, as DLA-34 has eight of."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)
        self.dead = nn.Parameter(torch.ones(3))

    def freeze(self) -> None:
        """Leave convolution and norm untrained, as a detector's frozen stages are."""
        self.convolution.requires_grad_(False)
        self.norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm.training = mode and self.convolution.weight.requires_grad
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean(dim=(2, 3)))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.randn(8, 2, generator=generator)


def train(
    rank: int,
    world_size: int,
    settings: EngineSettings,
    optimizer: type[torch.optim.Optimizer],
    steps: range,
    state: TrainingState | None,
    frozen: bool = False,
) -> Engine:
    torch.manual_seed(3)
    model = Toy()
    if frozen:
        model.freeze()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in learning if parameter.ndim > 1]
    others = [parameter for parameter in learning if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr_factor": 2.0}]
    if optimizer is torch.optim.SGD:
        groups = [{**group, "momentum": 0.9} for group in groups]
    engine = Engine(model, optimizer, groups, settings, split_batch(8, world_size, 2), torch.device("cpu"), state)
    share = 8 // world_size
    for step in steps:
        images, wanted = (value[rank * share : (rank + 1) * share] for value in batch(step))
        engine.set_learning_rate(0.01 / (1 + step))
        for part in range(engine.split.accumulation_steps):
            rows = slice(part * engine.split.microbatch_size, (part + 1) * engine.split.microbatch_size)
            engine.backward((engine.forward(images[rows]).float() - wanted[rows]).square().mean())
            engine.step()
    return engine

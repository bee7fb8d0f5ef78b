"""Half precision for files: the network in float16, its last layers and the decoding in float32."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from detectors import Detector


def in_half_precision(detector: Detector) -> Detector:
    """Return a copy of a detector whose network computes in float16, for export.

    The layers that output raw maps stay in float32, as in mixed-precision training: a size of 100 cells in float16
    moves in steps of a sixteenth of a cell. So does the sampling of deformable convolutions.
    """
    halved = copy.deepcopy(detector)
    last = {id(layer) for layer in _layers_of_maps(halved)}
    for layer in halved.modules():
        if id(layer) in last:
            continue
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.half()
        for name, buffer in layer.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(layer, name, buffer.half())
    halved.register_forward_pre_hook(_halve_images)
    return halved


def _halve_images(detector: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *further = arguments
    return (images.half(), *further)


def _layers_of_maps(detector: Detector) -> list[nn.Module]:
    """Find the layers whose results leave the network: those that `in_float32` runs."""
    found: list[nn.Module] = []
    calls: list[Tensor] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        # Kept until the end, so that no later tensor gets the address of an earlier one.
        calls.append(result)
        of_result[id(result)] = layer

    of_result: dict[int, nn.Module] = {}
    handles = [layer.register_forward_hook(note) for layer in detector.modules() if isinstance(layer, nn.Conv2d)]
    try:
        with torch.no_grad():
            outputs = detector(torch.zeros(1, 3, *_small_input(detector)))
    finally:
        for handle in handles:
            handle.remove()
    for leaf in torch.utils._pytree.tree_leaves(outputs):
        if id(leaf) in of_result:
            found.append(of_result[id(leaf)])
    return found

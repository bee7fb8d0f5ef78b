"""The parameters of a network, and the memory that its activations take in training. Nothing is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Documented as "fake tensor", though its module has an underscore.
from torch._subclasses.fake_tensor import FakeTensorMode

import detectors


@dataclass(frozen=True)
class NetworkSize:
    """The share of a device's memory that a network takes, on any device."""

    parameters: int
    kept_bytes: int
    """Bytes of activations that forward keeps for backward, for one image in float32."""


def network_size(name: str, input_size: tuple[int, int]) -> NetworkSize:
    """Measure a detector's network in training, with tensors that have shapes but no memory.

    Args:
        name: the detector's.
        input_size: height and width of the input, in pixels, that fits the network.
    """
    kept: dict[int, Tensor] = {}
    with FakeTensorMode():
        detector = detectors.build(name).train()
        own = {parameter.untyped_storage()._cdata for parameter in detector.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            # Several operations keep views of one storage. Holding the tensor keeps its address from being used again.
            address = tensor.untyped_storage()._cdata
            if address not in own:
                kept[address] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            detector(torch.empty(1, 3, *input_size))
    return NetworkSize(
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        kept_bytes=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
    )

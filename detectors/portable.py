"""A detector as one module, from pixels to boxes, for files that run without this package."""

import copy

import torch
from torch import Tensor, nn

from detectors.detector import Detector
from detectors.layers.head import in_half_precision
from detectors.settings import require_count
from detectors.shapes import Float


class PortableDetector(nn.Module):
    """Normalisation, network, decoding and suppression, all in tensors of fixed shapes.

    Without test-time augmentation, it finds what `Detector.decode` finds in the same input.

    Args:
        detector: moves into evaluation mode.
        limit: detections an image.
        half: run a copy of the network in float16; maps are still output and decoded in float32.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, detector: Detector, limit: int = 100, half: bool = False) -> None:
        super().__init__()
        require_count("limit", limit)
        self.detector = detector.eval()
        if half:
            self.detector = copy.deepcopy(self.detector)
            in_half_precision(self.detector)
        self.limit, self.half_precision = limit, half
        preprocessing = detector.preprocessing
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        device = next(detector.parameters()).device
        # In the order of operations of training: two roundings, not three.
        self.register_buffer("gain", (preprocessing.scale / std).to(device), persistent=False)
        self.register_buffer("offset", (-mean / std).to(device), persistent=False)

    @property
    def padding_color(self) -> tuple[float, float, float]:
        """Red, green and blue, 0 to 255, that become 0 in the network's input."""
        preprocessing = self.detector.preprocessing
        color = [value / preprocessing.scale for value in preprocessing.mean]
        red, green, blue = color if preprocessing.channel_order == "rgb" else color[::-1]
        return red, green, blue

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Find objects in images that fill their inputs.

        Args:
            images: `(batch, 3, height, width)`, uint8 or float32; red, green and blue, 0 to 255; of a size that the
                detector takes.

        Returns:
            Boxes, scores and labels, then keypoints or boxes in 3D of detectors that have them; see
            `DetectionTensors`.
        """
        inputs = self.normalised(images)
        found = self.detector.detect_tensors(inputs.half() if self.half_precision else inputs, self.limit)
        every = (found.boxes, found.scores, found.labels, found.keypoints, found.box3d)
        return tuple(values for values in every if values is not None)

    def normalised(self, images: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """The network's input."""
        pixels = images if self.detector.preprocessing.channel_order == "rgb" else images.flip(1)
        return pixels.float() * self.gain + self.offset

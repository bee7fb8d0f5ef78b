"""A detector that has a network and nothing else."""

from typing import Any

import detectors
from detectors.backbones.hourglass import HourglassSettings
from detectors.backbones.squeeze_hourglass import SqueezeSettings
from detectors.cornernet.networks import CornerNetNetwork, SaccadeNetwork, SqueezeNetwork
from detectors.keypoint_triplets.networks import TripletsNetwork, TripletsNetwork52
from detectors.shared.network import Network, Outputs

NETWORKS = {
    "cornernet": (CornerNetNetwork, HourglassSettings),
    "squeeze": (SqueezeNetwork, SqueezeSettings),
    "saccade": (SaccadeNetwork, HourglassSettings),
    "triplets_104": (TripletsNetwork, HourglassSettings),
    "triplets_52": (TripletsNetwork52, HourglassSettings),
}


class Owner(detectors.Detector):
    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes
        self.sizes, self.published = network.sizes, network.published()
        for name, layer in network.make_layers().items():
            self.add_module(name, layer)

    def forward(self, images: Any) -> Outputs:
        return self.network.run(self, images)

    def encode(self, boxes: Any, labels: Any, input_size: Any, **extra: Any) -> Any:
        raise NotImplementedError

    def losses(self, outputs: Any, targets: Any) -> Any:
        raise NotImplementedError

    def decode(self, outputs: Any, input_size: Any, limit: int = 100) -> Any:
        raise NotImplementedError


def owner(name: str, num_classes: int = 80, **settings: Any) -> Owner:
    network, settings_type = NETWORKS[name]
    built = Owner(network(settings_type(**settings), num_classes), num_classes)
    built.name = name
    return built

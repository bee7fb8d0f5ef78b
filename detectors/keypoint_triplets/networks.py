"""The networks of CenterNet: Keypoint Triplets: CornerNet's, with cascade corner pooling and centres."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from torch import nn

from detectors.backbones.hourglass import HourglassForm
from detectors.cornernet.file_keys import TRIPLETS
from detectors.cornernet.networks import CornerNetNetwork
from detectors.file_layouts import FileLayout
from detectors.layers.corner_pooling import CascadeCornerPooling, CenterPooling

_TWO_STACKS = replace(
    TRIPLETS,
    marker="kps.1.",
    refusal="it has two hourglasses. Build keypoint_triplets_hourglass104 for it",
)


class TripletsNetwork(CornerNetNetwork):
    """Hourglass-104 with cascade corner pooling and centre pooling.

    `run` also returns "center_heatmap" (as many channels as classes) and "center_offset" (2).

    Source:
        Duan et al., CenterNet: Keypoint Triplets (arXiv:1904.08189); Duankaiwen/CenterNet, models/CenterNet-104.py.
    """

    pooling: ClassVar[Mapping[str, str]] = {**CornerNetNetwork.pooling, "center": "ct_cnvs"}
    heads: ClassVar[Mapping[str, str]] = {
        "top_left_heatmap": "tl_heats",
        "bottom_right_heatmap": "br_heats",
        "center_heatmap": "ct_heats",
        "top_left_tag": "tl_tags",
        "bottom_right_tag": "br_tags",
        "top_left_offset": "tl_regrs",
        "bottom_right_offset": "br_regrs",
        "center_offset": "ct_regrs",
    }
    file_layouts: tuple[FileLayout, ...] = (TRIPLETS,)
    export_layouts: Mapping[str, FileLayout] = {"authors": TRIPLETS}

    def make_pooling(self, point: str) -> nn.Module:
        """Make the pooling module of a kind of point."""
        width = self.settings.width
        if point == "center":
            return CenterPooling(width)
        return CascadeCornerPooling(width, *(("top", "left") if point == "top_left" else ("bottom", "right")))


class TripletsNetwork52(TripletsNetwork):
    """The same with a single hourglass (Hourglass-52)."""

    form: ClassVar[HourglassForm] = HourglassForm(stacks=1)
    file_layouts: tuple[FileLayout, ...] = (_TWO_STACKS, TRIPLETS)

"""The search of CornerNet-Saccade: where to look again in an image, how closely, and the crops that are looked at.

A *location* is y, x, a scale and a score, as float64 on the CPU; y and x are pixels of the image, and the scale is that
at which the image around them is shown. Published results depend on the float64: sides of crops are truncated.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.cornernet.decoding import Pairs
from detectors.shapes import Float
from detectors.shared import boxes as box
from detectors.shared.peaks import suppress_neighbours

SIDE = 255
"""Height and width of crops, in pixels."""
FIRST_SIDES = (192, 255)
"""Longer sides of the image when it is first looked at."""
ATTENTION_STRIDES = (16, 8, 4)
"""Strides of the attention maps: for large, medium and small objects."""
_ZOOMS = {16: 1, 8: 2, 4: 4}
"""Factor on the scale for the objects of each attention map."""
_LARGEST_SCALE = 2
"""Scale above which attention is not followed."""
_LARGEST_NEXT_SCALE = 4
_APART = 16
"""Pixels between locations at the scale of the better one."""


@dataclass(frozen=True)
class Crop:
    """Part of an image, as the network receives it."""

    pixels: Float[Tensor, "3 255 255"]
    scale: float
    """Pixels of the crop per pixel of the image."""
    offset: Float[Tensor, " 2"]
    """x and y in the image of the crop's corner, float32."""

    def in_image(self, points: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any 2"]:
        """Points of the crop in the frame of the image."""
        return points / self.scale + self.offset


def first_locations(height: int, width: int) -> Float[Tensor, "locations 4"]:
    """The centre of the image, at the scales that show the whole of it."""
    # As published: scales are float32, and divisions by them float64.
    scales = [float(torch.tensor(side / max(height, width), dtype=torch.float32)) for side in FIRST_SIDES]
    return torch.tensor([[height // 2, width // 2, scale, 1.0] for scale in scales], dtype=torch.float64)


def cut(
    image: Float[Tensor, "3 height width"], location: Float[Tensor, " 4"], blank: Float[Tensor, "3 1 1"]
) -> Crop | None:
    """Cut the part of an image around a location, and resize it (bilinear, without antialiasing).

    Args:
        image: normalised.
        location: see the module's docstring.
        blank: what a black pixel is after normalisation, for what is outside the image.

    Returns:
        None if the crop would have no pixel of the image.

    Source:
        princeton-vl/CornerNet-Lite, core/test/cornernet_saccade.py, `crop_image_gpu` and `prepare_images`.
    """
    y, x, scale = location[:3].tolist()
    side = int(SIDE / scale)
    if side < 2:
        return None
    rows = _span(int(y), side, image.shape[-2])
    columns = _span(int(x), side, image.shape[-1])
    if rows is None or columns is None:
        return None
    pixels = blank.expand(-1, SIDE, SIDE).clone()
    (source_rows, rows_here), (source_columns, columns_here) = rows, columns
    size = (rows_here.stop - rows_here.start, columns_here.stop - columns_here.start)
    part = image[None, :, source_rows, source_columns]
    pixels[:, rows_here, columns_here] = functional.interpolate(part, size, mode="bilinear", align_corners=False)[0]
    return Crop(pixels, scale, torch.tensor([float(int(x) - side // 2), float(int(y) - side // 2)]))


def _span(center: int, side: int, length: int) -> tuple[slice, slice] | None:
    """Rows or columns of the image that a crop shows, and those of the crop that show them; None without any."""
    first, last = max(0, center - side // 2), min(center + side // 2, length)
    factor, middle = SIDE / side, SIDE // 2
    here = slice(middle - int((center - first) * factor), middle + int((last - center) * factor))
    return (slice(first, last), here) if first < last and here.start < here.stop else None


def attended_locations(
    maps: Mapping[str, Tensor], crops: list[Crop], size: tuple[int, int], threshold: float
) -> Float[Tensor, "locations 4"]:
    """Peaks of the attention maps inside the image, with the scale for the objects of their size.

    Args:
        maps: raw "attention_16", "attention_8" and "attention_4", an image for each crop.
        crops: what was looked at.
        size: height and width of the image.
        threshold: score above which a peak is followed.

    Source:
        princeton-vl/CornerNet-Lite, core/test/cornernet_saccade.py, `decode_atts`.
    """
    peaks = {
        stride: suppress_neighbours(maps[f"attention_{stride}"].float().sigmoid())[:, 0].cpu()
        for stride in ATTENTION_STRIDES
    }
    found = [torch.zeros(0, 4, dtype=torch.float64)]
    for number, crop in enumerate(crops):
        for stride, of_crops in peaks.items():
            scale = _ZOOMS[stride] * crop.scale
            if crop.scale > _LARGEST_SCALE or scale > _LARGEST_NEXT_SCALE:
                continue
            scores = of_crops[number]
            cells = (scores > threshold).nonzero()
            # y, x
            places = cells.double() * stride / crop.scale + crop.offset.flip(0)
            inside = ((places >= 0) & (places < places.new_tensor(size))).all(dim=1)
            rest = torch.stack((torch.full((len(cells),), scale), scores[cells[:, 0], cells[:, 1]]), dim=1)
            found.append(torch.cat((places, rest.double()), dim=1)[inside])
    return torch.cat(found)


def locations_of(pairs: Pairs) -> Float[Tensor, "locations 4"]:
    """The middle of each box, with the scale that makes its longer side 192, 64 or 24 pixels, and the score 1.

    Args:
        pairs: of one image, in its frame.

    Source:
        princeton-vl/CornerNet-Lite, core/test/cornernet_saccade.py, `get_ref_locs`.
    """
    longer = box.sizes(pairs.boxes).amax(dim=1)
    goal = torch.where(longer > 96, 192.0, torch.where(longer > 32, 64.0, 24.0))
    found = torch.cat((box.centers(pairs.boxes).flip(1), (goal / longer)[:, None]), dim=1).double()
    # A box without a size has no scale.
    return torch.cat((found, torch.ones(len(found), 1, dtype=torch.float64)), dim=1)[found[:, 2].isfinite()]


def without_neighbours(locations: Float[Tensor, "locations 4"]) -> Float[Tensor, "kept 4"]:
    """Keep a location unless it is near a better one with about the same scale; best first.

    As published, the distance is the smaller of those in y and in x, so a location suppresses a cross of others. Of
    equal scores, the last in the list counts as better, as numpy's sort has short lists in the published code.

    Source:
        princeton-vl/CornerNet-Lite, core/test/cornernet_saccade.py, `location_nms`.
    """
    rest = locations[locations[:, 3].argsort(stable=True).flip(0)]
    kept = []
    while len(rest):
        best = rest[0]
        kept.append(best)
        distance = (rest[:, :2] - best[:2]).abs().amin(dim=1)
        ratio = best[2] / rest[:, 2]
        rest = rest[(distance > _APART / best[2]) | (ratio > 1.2) | (ratio < 0.8)]
    return torch.stack(kept) if kept else locations

"""Objects in 3D after detection: from the image frame to the camera's, and box sizes as KITTI's results have them."""

import math

import torch
from torch import Tensor

from detectors.detections import points_in_image
from detectors.shapes import Float
from detectors.shared import boxes as box


def place_in_camera(
    centers: Float[Tensor, "objects 2"],
    depth: Float[Tensor, " objects"],
    dimensions: Float[Tensor, "objects 3"],
    alpha: Float[Tensor, " objects"],
    calibration: Float[Tensor, "3 4"],
) -> tuple[Float[Tensor, "objects 3"], Float[Tensor, " objects"]]:
    """Location and orientation of objects in the camera's frame.

    Args:
        centers: x, y in the image frame.
        depth: in metres.
        dimensions: height, width, length in metres.
        alpha: observation angle in radians.
        calibration: the camera's projection matrix (KITTI's P2).

    Returns:
        x, y, z in metres of the middle of the object's underside, KITTI's convention; and the rotation around the
        vertical axis in radians, -pi .. pi.

    Source:
        xingyizhou/CenterNet, src/lib/utils/ddd_utils.py, `ddd2locrot`.
    """
    focal, center_x, center_y = calibration[0, 0], calibration[0, 2], calibration[1, 2]
    z = depth - calibration[2, 3]
    x = (centers[:, 0] * depth - calibration[0, 3] - center_x * z) / focal
    y = (centers[:, 1] * depth - calibration[1, 3] - center_y * z) / calibration[1, 1]
    rotation = alpha + torch.atan2(centers[:, 0] - center_x, focal)
    rotation = torch.where(rotation > math.pi, rotation - 2 * math.pi, rotation)
    rotation = torch.where(rotation < -math.pi, rotation + 2 * math.pi, rotation)
    return torch.stack((x, y + dimensions[:, 0] / 2, z), dim=-1), rotation


def with_published_sizes(
    boxes_in_image: Float[Tensor, "objects 4"], transform: Float[Tensor, "2 3"]
) -> Float[Tensor, "objects 4"]:
    """Boxes as the published evaluation measures them, a pixel or two higher on KITTI.

    It moves width and height from the input to the image as if they were the x and y of a point, so that the shift
    between the two is added to them. The middles of boxes stay.

    Args:
        boxes_in_image: x1, y1, x2, y2.
        transform: the affine map from image to input.

    Source:
        xingyizhou/CenterNet, src/lib/utils/post_process.py, `ddd_post_process_2d`.
    """
    shift = points_in_image(torch.zeros(1, 2), transform)
    return box.around(box.centers(boxes_in_image), box.sizes(boxes_in_image) + shift)

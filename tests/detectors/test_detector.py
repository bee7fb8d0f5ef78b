"""The contract: what a detector says of itself, and what all detectors share."""

import torch

import detectors


def test_what_a_detector_says_of_its_data() -> None:
    with torch.device("meta"):
        boxes, pose, in_3d, fcos = (
            detectors.build(name)
            for name in ("centernet_resnet18", "centernet_dla34_pose", "centernet_dla34_3d", "fcos_resnet50")
        )
    assert [one.max_objects for one in (boxes, pose, in_3d, fcos)] == [128, 32, 50, None]
    assert [one.needs for one in (boxes, pose, fcos)] == [(), ("keypoints",), ()]
    assert [one.takes_rotated_images for one in (boxes, pose, in_3d, fcos)] == [False, True, False, False]


def test_heatmaps_for_pictures_are_those_of_the_classes() -> None:
    with torch.device("meta"):
        boxes, fcos = detectors.build("centernet_resnet18", 3), detectors.build("fcos_resnet50", 3)
    objects = torch.tensor([[[8.0, 8, 24, 24]]]), torch.tensor([[1]]), (64, 96)
    ((name, heatmap),) = boxes.heatmaps(boxes.encode(*objects)).items()
    assert name == "heatmap"
    assert heatmap.shape == (1, 3, 16, 24)
    assert (heatmap == 1).nonzero().tolist() == [[0, 1, 4, 4]]
    assert fcos.heatmaps(fcos.encode(*objects)) == {}


def test_biases_are_found_by_name() -> None:
    with torch.device("meta"):
        detector = detectors.build("centernet_resnet18", 3)
    biases = detector.biases()
    assert len(biases) == 20 + 3 + 6  # norms of the trunk and of the way up, convolutions of the heads
    assert {"bn1.bias", "deconv_layers.1.bias", "hm.0.bias", "hm.2.bias"} <= set(biases)

"""Classes that weights were published for, which their files do not name: COCO's, its persons, VOC's and KITTI's."""

from data_shards.format.manifest import CocoClass
from detectors import Detector

_COCO = """\
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light, \
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, \
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, \
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard, \
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, \
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, \
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, \
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, \
88 teddy bear, 89 hair drier, 90 toothbrush"""

_VOC = """\
1 aeroplane, 2 bicycle, 3 bird, 4 boat, 5 bottle, 6 bus, 7 car, 8 cat, 9 chair, 10 cow, 11 diningtable, 12 dog, \
13 horse, 14 motorbike, 15 person, 16 pottedplant, 17 sheep, 18 sofa, 19 train, 20 tvmonitor"""

# The ids of CenterNet's converted annotations.
_KITTI = "1 Pedestrian, 2 Car, 3 Cyclist"

_PERSON = CocoClass(
    1,
    "person",
    keypoints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    skeleton=(
        *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
        *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
    ),
)


def published_classes(detector: Detector) -> tuple[CocoClass, ...]:
    """Return the classes of a published file of this detector, as their number tells; empty if it tells none."""
    if "keypoints" in detector.needs:
        return (_PERSON,) if detector.num_classes == 1 else ()
    lists = {3: _KITTI} if "depth" in detector.needs else {80: _COCO, 20: _VOC}
    return (
        tuple(
            CocoClass(int(number), name)
            for number, name in (
                entry.strip().split(" ", 1) for entry in lists.get(detector.num_classes, "").split(",")
            )
        )
        if detector.num_classes in lists
        else ()
    )

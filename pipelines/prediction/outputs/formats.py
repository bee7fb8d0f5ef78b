"""The formats by the words of `--as`; the only module that knows all of them."""

from pipelines.prediction.outputs.coco import Coco
from pipelines.prediction.outputs.kitti import Kitti
from pipelines.prediction.outputs.output import Output
from pipelines.prediction.outputs.pictures import Pictures
from pipelines.prediction.outputs.prelabels import PreLabels
from pipelines.prediction.outputs.table import Table
from pipelines.prediction.outputs.video import Video
from pipelines.prediction.outputs.yolo import Yolo

OUTPUTS: dict[str, type[Output]] = {
    "pictures": Pictures,
    "coco": Coco,
    "yolo": Yolo,
    "csv": Table,
    "kitti": Kitti,
    "video": Video,
    "prelabels": PreLabels,
}

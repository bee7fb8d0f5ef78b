"""KITTI's result files of detectors in 3D: for each image whose camera is known, a line for each object."""

from data_shards.counting import counted
from data_shards.reading.scratch import Image
from data_shards.storage.store import Store
from pipelines import console
from pipelines.evaluation.kitti_results import result_line
from pipelines.prediction.outputs.coco import coco_results
from pipelines.prediction.outputs.output import Output
from pipelines.prediction.records import ImageRecord, Records


class Kitti(Output):
    """`kitti/NAME.txt` of every image whose camera is known; empty without an object, as KITTI's tool expects."""

    def write_image(self, store: Store, record: ImageRecord, image: Image | None) -> None:
        """Write the lines of one image."""
        if record.camera is None:
            return
        class_names = {one.id: one.name for one in self.subject.classes}
        results = coco_results(record, [one.id for one in self.subject.classes])
        lines = [result_line(one, class_names[one["category_id"]]) for one in results if "location" in one]
        store.write_bytes(f"kitti/{record.stem}.txt", "".join(lines).encode())

    def finish(self, store: Store, records: Records) -> list[str]:
        """Say for how many images there is no file."""
        without = sum(one.camera is None for one in records)
        if without:
            console.say(
                "warning",
                f"{counted(without, 'image')} without a camera, so without a file in kitti/; give --calibration",
            )
        return ["kitti"] if without < len(records) else []

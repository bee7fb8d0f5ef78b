from pathlib import Path

from pycocotools.coco import COCO

from data_shards.building.build import build_shards
from data_shards.loading.ground_truth import coco_ground_truth
from data_shards.order.plan import World
from data_shards.reading.split import open_split
from tests.data_shards.loaders import evaluation_loader
from tests.data_shards.samples import document, write_coco


def test_the_ground_truth_is_that_of_the_file(tmp_path: Path) -> None:
    content = document(9)
    annotations, images = write_coco(tmp_path, content)
    report = build_shards(annotations, images, str(tmp_path / "out"), split="val", shard_bytes=12_000)
    truth = coco_ground_truth(open_split(report.location))
    by_id = lambda item: item["id"]  # noqa: E731
    assert sorted(truth["images"], key=by_id) == sorted(content["images"], key=by_id)
    assert sorted(truth["annotations"], key=by_id) == sorted(content["annotations"], key=by_id)
    assert truth["categories"] == sorted(content["categories"], key=by_id)
    # Images come in the order of the samples.
    with evaluation_loader(report.location, World(1, 0), batch_size=9) as loader:
        assert [image["id"] for image in truth["images"]] == next(loader).image_ids.tolist()


def test_missing_fields_of_the_ground_truth_are_filled_for_pycocotools(tmp_path: Path) -> None:
    content = document(2)
    for name in ("area", "iscrowd"):
        del content["annotations"][0][name]
    annotations, images = write_coco(tmp_path, content)
    truth = coco_ground_truth(
        open_split(build_shards(annotations, images, str(tmp_path / "out"), split="val").location)
    )
    # The box is 13 wide and 9.5 high.
    assert (truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]) == (123.5, 0)
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    assert len(coco.getAnnIds(imgIds=[107])) == 1

"""Samples on a contact sheet, found by their keys and by their file names."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_shards.building.build import build_shards
from data_shards.errors import DataError
from data_shards.reading.split import open_split
from pipelines import recipes
from pipelines.errors import ConfigError
from pipelines.pictures.contact_sheet import heatmap_over, write_contact_sheet
from pipelines.recipes.recipe import with_flags
from tests.data_shards.samples import document, write_coco

SMALL = ["--data.input_size", "64", "64", "--detector.settings.width", "4"]


def test_a_sample_is_found_by_its_key_its_image_id_or_its_file_name(tmp_path: Path) -> None:
    annotations, images = write_coco(tmp_path, document(6))
    location = build_shards(annotations, images, str(tmp_path), split="train", shard_bytes=5_000).location
    recipe = with_flags(recipes.get("demo"), SMALL)
    shards = open_split(location).shards()
    last = len(shards.manifest.shards) - 1
    assert last > 0
    image_id, file_name = int(shards.index(last).image_ids[0]), shards.read_json(last, 0)["file_name"]
    first_id = int(shards.index(0).image_ids[0])
    shards.close()
    sheet = tmp_path / "sheet.jpg"
    drawn = write_contact_sheet(location, recipe, sheet, keys=[file_name, f"{first_id:012d}"])
    assert [int(key) for key in drawn] == [image_id, first_id]
    by_name = sheet.read_bytes()
    assert by_name.startswith(b"\xff\xd8\xff")
    # The same sample by two of its names is drawn once.
    assert write_contact_sheet(location, recipe, sheet, keys=[file_name, str(image_id), str(first_id)]) == drawn
    assert sheet.read_bytes() == by_name
    with pytest.raises(DataError, match=r"has no sample IMG_1\.jpg\. Give a file name, or a key as"):
        write_contact_sheet(location, recipe, sheet, keys=["IMG_1.jpg"])


def test_an_output_that_is_not_a_picture_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sheet\.svg cannot be written as a picture"):
        write_contact_sheet(str(tmp_path / "nowhere"), recipes.get("demo"), tmp_path / "sheet.svg")


@pytest.mark.parametrize(
    ("name", "panels"),
    [("cornernet_squeeze", 4), ("cornernet_saccade", 7), ("keypoint_triplets_hourglass52", 5)],
)
def test_crops_of_the_cornernet_family_are_drawn_with_their_targets(tmp_path: Path, name: str, panels: int) -> None:
    annotations, images = write_coco(tmp_path, document(6, ((40, 60),)))
    location = build_shards(annotations, images, str(tmp_path), split="train").location
    small = ["--data.input_size", "127", "127", "--detector.settings.width", "4"]
    sheet = tmp_path / "sheet.png"
    assert len(write_contact_sheet(location, with_flags(recipes.get(name), small), sheet, samples=5)) == 5
    # Two panels, and one for each heatmap: both corners, and centres or attention at three strides.
    width = cv2.imread(str(sheet)).shape[1]
    assert width > panels * 127


def test_cells_that_reach_beyond_the_image_are_cut_off_there() -> None:
    # Cells of 128 pixels, 4 × 5 of them on 480 × 640 pixels: the last row has 96.
    heatmap = np.zeros((1, 4, 5), dtype=np.float32)
    heatmap[0, 3, 1] = 1
    over = heatmap_over(np.full((480, 640, 3), 100, dtype=np.uint8), heatmap)
    lit = (over != over[0, 0]).any(axis=2)
    assert lit[384:, 128:256].all()
    assert lit.sum() == 96 * 128

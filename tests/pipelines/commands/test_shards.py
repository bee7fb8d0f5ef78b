"""`aweigh shards …` through the command line, as a user types it."""

import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_shards.format.manifest import load_manifest
from detectors import Preprocessing
from pipelines.cli import main
from pipelines.pictures.contact_sheet import heatmap_over, received_pixels
from pipelines.pictures.drawing import class_color
from tests.data_shards.samples import document, spoil, write_coco


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["shards", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_plan_prints_its_arithmetic(small_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = str(small_shards / "train")
    main(["shards", "plan", train, "--batch", "5", "--cache", "0.001"])
    shown = capsys.readouterr().out
    assert "epoch     2 steps = 10 samples; 2 dropped at the end, different ones every epoch" in shown  # 12 = 2 × 5 + 2
    main(["shards", "plan", train, "--batch", "4", "--nodes", "2", "--workers", "4", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert (figures["steps_per_epoch"], figures["workers"], figures["shards_per_node"]) == (3, 4, [1, 1])
    assert "cannot be divided equally among 3 workers" in refused(capsys, "plan", train, "--batch", 4, "--workers", 3)


def test_examine_reports_and_counts(small_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["shards", "examine", str(small_shards / "train"), "--against", str(small_shards / "val")])
    shown = capsys.readouterr()
    assert f"{small_shards / 'train'}: 12 images, 15 objects and 3 crowds of 3 classes" in shown.out
    # Both splits are the same six pictures and six more.
    assert "WRONG         6  images that the other split has too, byte for byte" in shown.out
    assert "examine   18/18 images  100%" in shown.err
    main(["shards", "examine", str(small_shards / "train"), "--input-size", "64", "64", "--json"])
    kinds = {item["kind"] for item in json.loads(capsys.readouterr().out)["findings"]}
    assert "crowd" in kinds


def test_show_draws_the_samples(small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, sheet = str(small_shards / "train"), tmp_path / "pages" / "sheet.png"
    small = ["--detector.settings.width", "8", "--detector.settings.deconv_channels", "8", "8", "8"]
    main(["shards", "show", train, "--output", str(sheet), "--samples", "3", *small])
    assert "3 samples of" in capsys.readouterr().out
    three = cv2.imread(str(sheet))
    main(["shards", "show", train, "--output", str(sheet), "--key", "000000000107", "--key", "121", *small])
    two = cv2.imread(str(sheet))
    # A row is 340 pixels and its caption, 34.
    assert three.shape[0] - two.shape[0] == 374
    first = two[64:404]
    assert np.ptp(first[:, 24:300].astype(int)) > 200
    main(["shards", "show", train, "--output", str(sheet), "--key", "107", "--key", "121", "--epoch", "1", *small])
    later = cv2.imread(str(sheet))
    assert np.array_equal(later[64:404, 24:279], two[64:404, 24:279])  # the file stays, the augmentation does not
    assert not np.array_equal(later, two)
    assert "has no sample 8." in refused(capsys, "show", train, "--output", sheet, "--key", 8)
    assert "--samples is 0" in refused(capsys, "show", train, "--output", sheet, "--samples", 0)
    assert "unknown recipe 'demoo'" in refused(capsys, "show", train, "--output", sheet, "--recipe", "demoo")


def test_show_puts_gray_where_no_decoder_reads_an_image_if_asked(
    small_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, sheet = Path(shutil.copytree(small_shards / "train", tmp_path / "train")), tmp_path / "sheet.png"
    _, image_id = spoil(shards, 0, 3)
    show = ["show", str(shards), "--output", str(sheet), "--key", str(image_id), "--data.input_size", "64", "64"]
    assert f"image {image_id} does not decode" in refused(capsys, *show)
    main(["shards", *show, "--data.undecodable", "gray"])
    assert (cv2.imread(str(sheet))[80:380, 30:200] == 128).mean() > 0.8  # its boxes are drawn over it


def test_show_draws_joints_and_whole_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = document(4)
    names = ["nose", "left_hand", "right_hand"]
    content["categories"] = [{"id": 1, "name": "person", "keypoints": names, "skeleton": [[1, 2], [1, 3]]}]
    for item in content["annotations"]:
        item |= {"category_id": 1, "keypoints": [6, 8, 2, 12, 10, 1, 0, 0, 0]}
    annotations, images = write_coco(tmp_path, content)
    built = ["--annotations", str(annotations), "--images", str(images), "--output", str(tmp_path), "--split", "train"]
    main(["shards", "build", *built])
    assert "with 3 joints" in capsys.readouterr().out
    train, sheet = str(tmp_path / "train"), tmp_path / "sheet.png"
    pose = ["--detector.name", "centernet_dla34_pose", "--data.input_size", "64", "64"]
    pose += ["--detector.settings", "{width: 4, head_channels: 8, joints: 3}"]
    show = ["shards", "show", train, "--output", str(sheet), "--key", "107"]
    main([*show, *pose])
    with_joints = cv2.imread(str(sheet))
    # The image is 48 x 64, drawn 255 x 340 from (24, 64): the nose at (6, 8) is a dot of its class's colour.
    x, y = 24 + round(6 * 340 / 64), 64 + round(8 * 340 / 64)
    assert np.abs(with_joints[y, x, ::-1].astype(int) - class_color(0)).max() < 12
    hidden = 24 + round(12 * 340 / 64), 64 + round(10 * 340 / 64)  # labelled and not seen
    assert with_joints[hidden[1], hidden[0]].min() > 240
    whole = ["--augmentation.geometry", "shorter_side", "--augmentation.shorter_sides", "70"]
    main([*show, "--key", "114", *pose, *whole])
    assert "2 samples of" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_what_the_network_receives_is_shown_in_its_own_colours(order: str) -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    channels = pixels if order == "rgb" else pixels.flip(1)
    normalised = (channels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    shown = received_pixels(normalised, Preprocessing(order, mean, std))  # type: ignore[arg-type]
    assert np.array_equal(shown, pixels.permute(0, 2, 3, 1).numpy())


def test_the_heatmap_covers_its_cells_in_the_colour_of_its_class() -> None:
    heatmap = np.zeros((2, 2, 3), dtype=np.float32)
    heatmap[1, 0, 2] = 0.8  # the top right cell, 4 x 4 pixels
    over = heatmap_over(np.full((8, 12, 3), 100, dtype=np.uint8), heatmap)
    assert (over[4:] == 45).all()  # dim gray
    assert (over[:4, :8] == 45).all()
    expected = np.round(0.2 * 45 + 0.8 * np.array(class_color(1)))
    assert np.abs(over[:4, 8:].astype(int) - expected).max() <= 1


def test_push_pull_and_verify(small_shards: Path, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = load_manifest(str(small_shards / "val")).digest
    main(["shards", "push", str(small_shards / "val"), f"{s3}/val"])
    main(["shards", "pull", f"{s3}/val", str(tmp_path / "val")])
    main(["shards", "verify", str(tmp_path / "val"), "--decode"])
    shown = capsys.readouterr()
    assert f"{tmp_path / 'val'}: 1 shard with 6 images, manifest {digest[:6]}, every byte compared" in shown.out
    assert "6 images decoded" in shown.out
    assert "pull      1/1 shards" in shown.err
    assert "there are no shards at" in refused(capsys, "pull", f"{s3}/other", tmp_path / "other")
    assert "cannot push from s3://" in refused(capsys, "push", f"{s3}/val", tmp_path / "other")


def test_imports_go_straight_into_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images", "labels", "xml"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.full((40, 80, 3), 90, dtype=np.uint8))
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.5")
    (tmp_path / "names.txt").write_text("dog")
    (tmp_path / "xml" / "a.xml").write_text(
        "<annotation><filename>a.jpg</filename><object><name>dog</name><bndbox><xmin>30</xmin><ymin>10</ymin>"
        "<xmax>50</xmax><ymax>30</ymax></bndbox></object></annotation>"
    )
    images = ["--images", str(tmp_path / "images")]
    names = ["--names", str(tmp_path / "names.txt")]
    main(["shards", "import-yolo", *images, *names, "--output", str(tmp_path / "yolo.json")])
    xml = ["--annotations", str(tmp_path / "xml")]
    main(["shards", "import-voc", *xml, *images, "--classes", "dog", "--output", str(tmp_path / "voc.json")])
    assert (tmp_path / "yolo.json").read_text() == (tmp_path / "voc.json").read_text()
    # The last line is a command that works as printed.
    following = capsys.readouterr().out.splitlines()[-1]
    assert following.endswith("voc.json --images " + images[1] + " --output shards --split train")
    monkeypatch.chdir(tmp_path)
    main(shlex.split(following.removeprefix("next: aweigh ")))
    assert "1 image in 1 shard" in capsys.readouterr().out
    built = ["--annotations", str(tmp_path / "voc.json"), "--output", str(tmp_path), "--split", "train"]
    main(["shards", "build", *built, *images])
    assert "1 image in 1 shard" in capsys.readouterr().out
    assert "already exists" in refused(capsys, "import-yolo", *images, *names, "--output", tmp_path / "yolo.json")


def test_the_next_step_after_a_build_is_the_field_of_its_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, images = write_coco(tmp_path, document(2))
    shards = tmp_path / "my shards"
    built = ["--annotations", str(annotations), "--images", str(images), "--output", str(shards)]
    for split, field in (
        ("train", "train"),
        ("val2017", "validation"),
        ("mini_val", "validation"),
        ("test", "validation"),
    ):
        main(["shards", "build", *built, "--split", split])
        assert capsys.readouterr().out.splitlines()[-1].endswith(f" on them with --data.{field} '{shards}/{split}'")


def test_what_to_ignore_is_named_with_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, images = write_coco(tmp_path, document(4))
    built = ["--annotations", annotations, "--images", images, "--output", tmp_path, "--split", "train"]
    assert "'bottle' is neither" in refused(capsys, "build", *built, "--ignore", "bottle")
    assert "did you mean 'bottle'?" in refused(capsys, "build", *built, "--ignore", "bottel=dog")
    main(["shards", "build", *map(str, built), "--ignore", "bottle=dog", "--empty-images", "drop", "--max-size", "40"])
    shown = capsys.readouterr()
    assert "ignored: bottle (as dog); left out: none" in shown.out
    assert "a second" in shown.err


def test_a_size_that_is_not_a_number_is_refused_by_name(small_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", "--annotations", "a", "--images", "b", "--output", "c", "--split", "d"]
    assert "--shard-megabytes: 'nan' is not a size" in refused(capsys, *build, "--shard-megabytes", "nan")
    plan = ["plan", small_shards / "train", "--batch", 4]
    for amount in ("inf", "-1", "much"):
        assert f"--cache: '{amount}' is not a size; give a number" in refused(capsys, *plan, "--cache", amount)

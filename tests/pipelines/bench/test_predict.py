"""`bench predict`: a small real measurement; its values are for `docs/performance.md`."""

import json
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.data_shards.samples import jpeg, photo

SMALL = ["--data.input_size", "64", "64", "--evaluation.batch_size", "2", "--device", "cpu", "--rounds", "1"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs" / "some"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg(photo(number, 48 + number, 64)))
    return folder.parent


@pytest.mark.parametrize("geometry", ["fixed", "keep"])
def test_a_prediction_is_measured_beside_its_parts(
    photographs: Path, geometry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "predict", "demo", "--images", str(photographs), *SMALL, "--evaluation.geometry", geometry]
    main([*words, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    parts = ["decode", "network", "decoding", "from file to boxes"]
    assert [row["what"] for row in rows] == [
        *(f"one image at a time: {part}" for part in parts),
        *(f"batches of 2: {part}" for part in parts),
    ]
    assert all(row["milliseconds"] > 0 for row in rows)
    for first, limit in ((0, 1.15), (4, 1.05)):
        whole = rows[first + 3]
        assert whole["limit"] == limit
        # One round: the ratio is that of its figures.
        expected = whole["milliseconds"] / sum(row["milliseconds"] for row in rows[first : first + 3])
        assert whole["ratio"] == pytest.approx(expected)
    main([*words, "--count", "1"])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[3].startswith("one image at a time: from file to boxes")
    assert "× the parts   ≤ 1.15" in captured.out
    assert "with random weights" in captured.err
    assert "1 photograph, 1 round" in captured.err


def test_what_cannot_be_measured_is_refused(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = photographs / "empty"
    empty.mkdir()
    small_saccade = ["--detector.settings", "{width: 8}"]
    for words, message in (
        (["demo", "--images", str(empty)], "has no JPEG or PNG files; give a folder of photographs by --images."),
        (["demo", "--count", "0"], "--rounds is 1 and --count is 0; give 1 or more of each."),
        (["cornernet_saccade", "--images", str(photographs), *small_saccade], "runs its network several times"),
    ):
        with pytest.raises(SystemExit):
            main(["bench", "predict", *words, *SMALL])
        assert message in capsys.readouterr().err

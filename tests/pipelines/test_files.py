"""Files are replaced in one rename, or not at all."""

from pathlib import Path

import pytest

from pipelines.files import read_json, replacing, write_json


def test_a_file_is_replaced_only_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"step": 1})

    def fail_half_way() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail_half_way()
    assert read_json(path) == {"step": 1}
    with replacing(path) as unfinished:
        unfinished.write_text('{"step": 2}')
        assert read_json(path) == {"step": 1}
    assert read_json(path) == {"step": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_or_damaged_file_reads_as_an_empty_object(tmp_path: Path) -> None:
    assert read_json(tmp_path / "result.json") == {}
    (tmp_path / "result.json").write_text('{"step": ')
    assert read_json(tmp_path / "result.json") == {}

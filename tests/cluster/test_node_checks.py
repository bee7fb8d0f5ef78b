"""The checks that the preflight makes on a node, each by itself."""

import shutil
from pathlib import Path

import pytest

from cluster import node_checks

ROOT = Path(__file__).resolve().parents[2]


def test_the_digest_of_the_code_is_that_of_its_contents(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        for package in ("cluster", "pipelines"):
            shutil.copytree(ROOT / package, tmp_path / copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "two" / "cluster" / "__pycache__").mkdir()
    (tmp_path / "two" / "cluster" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert node_checks.code_digest(tmp_path / "one") == node_checks.code_digest(tmp_path / "two")
    with (tmp_path / "two" / "cluster" / "settings.py").open("a") as file:
        file.write("# another line\n")
    assert node_checks.code_digest(tmp_path / "one") != node_checks.code_digest(tmp_path / "two")


def test_files_of_other_nodes_are_found_and_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "run" / ".preflight"
    left = {node_checks.leave(folder, "driver"), node_checks.leave(folder)}
    assert node_checks.wait_for_names(folder, left, seconds=5) == left
    assert node_checks.wait_for_names(folder, {*left, "elsewhere"}, seconds=0) == left
    node_checks.clear(folder)
    assert not folder.exists()


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        node_checks.writable_free_bytes(str(tmp_path / "file" / "cache"))
    assert node_checks.writable_free_bytes(str(tmp_path / "cache")) > 0
    assert list((tmp_path / "cache").iterdir()) == []

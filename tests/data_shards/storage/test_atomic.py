import threading
from pathlib import Path

import pytest

from data_shards.storage.atomic import replacing


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("one")
        assert not path.exists()
    with replacing(path) as part:
        part.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_the_same_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(letter: str) -> None:
        with replacing(path) as part:
            part.write_text(1000 * letter)
            both.wait()  # both are written before either is renamed

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in (1000 * "a", 1000 * "b")
    assert list(tmp_path.iterdir()) == [path]

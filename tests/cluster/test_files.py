"""A small file is replaced in one step, whoever else writes it."""

import threading
from pathlib import Path

import pytest

from cluster.files import write_text


@pytest.mark.parametrize("flush", [True, False])
def test_a_failed_write_leaves_the_old_text_and_nothing_beside_it(
    flush: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.json"
    write_text(path, "old", flush=flush)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new", flush=flush)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_do_not_disturb_one_another(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    texts = [str(number) * 10_000 for number in range(4)]
    threads = [threading.Thread(target=lambda text=text: [write_text(path, text) for _ in range(5)]) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]

"""The worker group: world sizes that divide the batch."""

import errno
import io
from pathlib import Path

import pytest

from cluster import workers
from cluster.errors import ClusterError
from cluster.settings import ClusterSettings
from cluster.workers import _ascii, _followed, _leave_message, _message, dividing_worlds


def test_elastic_worlds_divide_the_batch() -> None:
    assert dividing_worlds(24, ClusterSettings(workers="2:8")) == (2, 3, 4, 6, 8)
    with pytest.raises(ClusterError, match="is 23, which no number of workers from 5 to 7 divides"):
        dividing_worlds(24 + 1 - 2, ClusterSettings(workers="5:7"))


@pytest.mark.parametrize(
    ("name", "ascii_name"),
    [
        ("first", "first"),
        ("exp/lr1e-3", "exp-lr1e-3"),
        ("größe 1", "gr-e-1"),
        ("実験1", "1"),
        ("🐱", "run"),
        ("a" * 200, "a" * 60),
    ],
)
def test_ray_receives_a_name_of_ascii_letters(name: str, ascii_name: str) -> None:
    assert _ascii(name) == ascii_name


def test_a_worker_leaves_its_message_also_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = tmp_path / "failure.json"
    assert _message(failure) == ""
    _leave_message(failure, 1, "the loss is not finite")
    assert _message(failure) == "the loss is not finite"
    for damaged in ("", '{"rank": 1', "[]", "{}"):
        failure.write_text(damaged)
        assert _message(failure) == ""
    failure.unlink()

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workers, "write_text", full)
    _leave_message(failure, 1, "the loss is not finite")
    # The file ends the restarts, without a message.
    assert failure.exists()
    assert _message(failure) == ""


class _Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str, /) -> int:
        raise OSError(5, "Input/output error")


def test_a_log_is_followed_even_if_nobody_reads_it(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_text("of an earlier attempt\n")
    shown = io.StringIO()
    for out in (shown, _Gone()):
        with _followed(log, out), log.open("ab") as file:
            file.write("größe \n".encode("latin-1"))
    assert shown.getvalue() == "gr\ufffd\ufffde \n"

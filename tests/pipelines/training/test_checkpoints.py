"""What a new attempt says of the one before it."""

from pathlib import Path

import pytest

from cluster.heartbeat import Heartbeat, read_standing
from pipelines.training.checkpoints import lost_line


@pytest.mark.parametrize(
    ("closed", "checkpoint", "said"),
    [
        (True, 7, "lost      nothing: the last attempt ended with this checkpoint"),
        (False, 7, "lost      less than a second of training: the last attempt was killed just after this checkpoint"),
        (True, 4, "lost      3 steps: 24 samples and 2 m 00 s of training are repeated"),
        (False, 4, "lost      3 steps: 24 samples and 2 m 00 s of training are repeated"),
    ],
)
def test_what_was_lost_is_said_as_far_as_it_is_known(tmp_path: Path, closed: bool, checkpoint: int, said: str) -> None:
    heartbeat = Heartbeat(tmp_path, 0, 1, hang_seconds=0)
    heartbeat.begin("data", 7)
    heartbeat.close()
    standing = read_standing(tmp_path, 0)
    assert standing is not None
    assert standing.last
    if not closed:
        # What a process leaves behind that had no time to close.
        standing = type(standing)(**{**vars(standing), "last": False})
    assert lost_line(standing, checkpoint, 8, saved_at=standing.written - 120) == said


def test_an_attempt_without_a_trace_is_said(tmp_path: Path) -> None:
    assert lost_line(read_standing(tmp_path, 0), 4, 8, 0).startswith("lost      unknown")

"""The spool on disk: damaged lines and steps that never go back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tracking.spool import SpoolWriter


def test_a_torn_line_longer_than_the_buffer_is_cut_off(tmp_path: Path) -> None:
    SpoolWriter(tmp_path).add_metrics(1, {"a": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for rest in (b"x" * 70_000, b"x" * 65_536, b"x"):
        (tmp_path / "metrics.jsonl").write_bytes(whole + rest)
        SpoolWriter(tmp_path)
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    (tmp_path / "metrics.jsonl").write_bytes(b"x" * 70_000)
    SpoolWriter(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=5))
def test_no_sequence_of_attempts_makes_the_spool_go_back(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    told: dict[str, list[int]] = {"a": [], "b": []}
    for attempt in attempts:
        writer = SpoolWriter(folder)
        for step in attempt:
            writer.add_metrics(step, {"a": 1.0} if step % 3 else {"a": 1.0, "b": 2.0})
            for key in told:
                if (key == "a" or step % 3 == 0) and step > max(told[key], default=-1):
                    told[key].append(step)
    lines = [record for record, _ in SpoolWriter(folder).metrics.read() if record]
    for key, expected in told.items():
        assert [line["step"] for line in lines if key in line["metrics"]] == expected

"""The record of evaluations that failed."""

from pathlib import Path

from pipelines.training.evaluation_log import EvaluationLog


def test_a_failed_evaluation_is_not_worth_another_try_until_it_succeeds(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    assert log.worth_another_try(20)
    log.begin(20)
    log.failed(20, "image 7: no number")
    assert EvaluationLog(tmp_path).failures() == {20: "image 7: no number"}
    assert not log.worth_another_try(20)
    assert log.worth_another_try(40)
    log.succeeded(20)
    assert log.failures() == {}


def test_an_evaluation_that_ends_its_process_twice_has_failed(tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path)
    log.begin(20)
    assert log.worth_another_try(20)
    log.begin(20)
    assert not log.worth_another_try(20)
    assert log.failures() == {20: "the workers ended during it 2 times"}


def test_a_damaged_record_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "log.json").write_text('{"begun": [], "failed"')
    assert EvaluationLog(tmp_path).worth_another_try(1)
    assert EvaluationLog(tmp_path).failures() == {}

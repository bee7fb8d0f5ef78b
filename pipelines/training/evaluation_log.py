"""Evaluations of a run that failed, so that no attempt repeats them and the run's end can name them.

evaluation/log.json     {"begun": {"step": 40, "times": 1}, "failed": {"20": "image 7: ValueError: …"}}
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.files import read_json, write_json

_MOST_TRIES = 2


class EvaluationLog:
    """Record of a run's evaluations, kept by rank 0.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "evaluation" / "log.json"

    def begin(self, step: int) -> None:
        """Record that an evaluation begins: one that ends the process leaves no other trace."""
        content = self._read()
        begun = content["begun"]
        times = begun.get("times", 0) + 1 if begun.get("step") == step else 1
        self._write({**content, "begun": {"step": step, "times": times}})

    def succeeded(self, step: int) -> None:
        """Record a success; a failure at this step in an earlier attempt no longer counts."""
        self._end(step, "")

    def failed(self, step: int, cause: str) -> None:
        """Record a failure and its cause."""
        self._end(step, cause)

    def worth_another_try(self, step: int) -> bool:
        """Return False if the evaluation of a step has failed, or has ended its process more than once."""
        content = self._read()
        begun = content["begun"]
        if begun.get("step") == step and begun.get("times", 0) >= _MOST_TRIES:
            self.failed(step, f"the workers ended during it {begun['times']} times")
            return False
        return str(step) not in content["failed"]

    def failures(self) -> dict[int, str]:
        """Return the causes of the failed evaluations, by step."""
        return {int(step): str(cause) for step, cause in sorted(self._read()["failed"].items(), key=_step)}

    def _end(self, step: int, cause: str) -> None:
        failed = {key: value for key, value in self._read()["failed"].items() if key != str(step)}
        self._write({"begun": {}, "failed": {**failed, **({str(step): cause} if cause else {})}})

    def _read(self) -> dict[str, dict[str, Any]]:
        content = read_json(self._path)
        return {name: found if isinstance(found := content.get(name), dict) else {} for name in ("begun", "failed")}

    def _write(self, content: dict[str, dict[str, Any]]) -> None:
        # A disk that is full may have space again at the next checkpoint; this record must not end training.
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, content)


def _step(item: tuple[str, Any]) -> int:
    return int(item[0])

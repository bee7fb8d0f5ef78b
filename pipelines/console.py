"""Output for people: progress on stderr, results on stdout, in the same columns everywhere.

In a terminal, lines are fitted to its width, and the topics `done`, `warning` and `error` are coloured unless NO_COLOR
is set. A file receives whole lines without any escape sequence.
"""

import os
import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TextIO

from data_shards.counting import counted

if TYPE_CHECKING:
    from pipelines.evaluation.evaluate import Evaluation

_COLORS = {"done": 32, "warning": 33, "error": 31}  # green, yellow, red

_NARROWEST_TEXT = 24
"""Columns below which wrapped text is harder to read than a line that the terminal wraps."""


def say(topic: str, text: str) -> None:
    """Print one line about what will happen or has happened on stderr."""
    end_progress_line()
    print(f"{_colored(topic)}{' ' * max(0, 10 - len(topic))}{text}", file=sys.stderr, flush=True)


def fail(message: str, status: int = 2) -> NoReturn:
    """Print what is wrong as one line on stderr and exit."""
    end_progress_line()
    print(f"{_colored('aweigh:', 'error')} {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names with their meanings on stdout; long meanings wrap in a terminal."""
    rows = list(rows)
    left = max((len(name) for name, _ in rows), default=0) + 2
    space = terminal_width(sys.stdout) - left
    for name, meaning in rows:
        lines = textwrap.wrap(meaning, space) if space >= _NARROWEST_TEXT else [meaning]
        print(name.ljust(left) + ("\n" + " " * left).join(lines))


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal that `stream` writes to; 0 if it writes elsewhere."""
    return shutil.get_terminal_size().columns if stream.isatty() else 0


def fit(line: str, columns: int) -> str:
    """Shorten a line about a step or an evaluation until it fits; the parts that matter least are dropped first."""
    for part in (r" \([^()]*\)", r"  data \d+%", r"  [\d.]+ img/s"):
        if len(line) <= columns:
            break
        line = re.sub(part, "", line)
    return line


class FittedLog:
    """Write a run's log to a terminal, with the lines about steps and evaluations fitted to its width.

    Args:
        stream: the terminal. A file receives the log as it is.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = ""

    def write(self, text: str) -> None:
        """Write the lines that are complete; the rest waits for its end."""
        columns = terminal_width(self._stream)
        if not columns:
            self._stream.write(text)
            return
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._stream.write((fit(line, columns) if line.startswith(("step ", "eval ")) else line) + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()


def step_line(step: int, last_step: int, losses: dict[str, float], pace: dict[str, float], remaining: float) -> str:
    """Describe a recorded step: progress, losses and speed."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "loss")
    return (
        f"step {step:,}/{last_step:,}  {100 * step / last_step:.1f}%  loss {losses['loss']:.3g} ({parts})  "
        f"{pace['time/images_per_second']:.1f} img/s  data {100 * pace['time/data_fraction']:.0f}%  "
        f"eta {duration(remaining)}"
    )


def evaluation_line(epoch: int, evaluation: "Evaluation", seconds: float) -> str:
    """Describe an evaluation."""
    found = evaluation.coco
    loss = f"  loss {evaluation.losses['loss']:.3g}" if "loss" in evaluation.losses else ""
    return (
        f"eval epoch {epoch}  AP {_figure(found.AP)}  AP50 {_figure(found.AP50)}  AP75 {_figure(found.AP75)}{loss}  "
        f"{counted(evaluation.num_images, 'image')} in {duration(seconds)}"
    )


def resumed_line(attempt: int, step: int, steps_per_epoch: int) -> str:
    """Describe the point from which an attempt resumes."""
    epochs, steps = divmod(step, steps_per_epoch)
    done = f"{counted(epochs, 'epoch')} and {counted(steps, 'step')} done"
    return f"resumed   attempt {attempt} at step {step:,}: {done}"


def duration(seconds: float) -> str:
    """Write seconds as a person would say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"  # NaN: there was nothing to find


def _colored(text: str, topic: str | None = None) -> str:
    """Color a text as its topic asks, in a terminal only (https://no-color.org)."""
    color = _COLORS.get(topic or text)
    if color is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty():
        return text
    return f"\x1b[{color}m{text}\x1b[0m"


class Pace:
    """Rate of a long piece of work and the time left, measured from construction."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def note(self, done: int, total: int, skipped: int = 0) -> str:
        """Return, for example, "310 a second, 2 m 10 s left"; empty before anything is done.

        Args:
            done: pieces finished so far.
            total: pieces in all.
            skipped: how many of those done were found finished and took no time.
        """
        worked, seconds = done - skipped, time.monotonic() - self._began
        if worked <= 0 or seconds <= 0:
            return ""
        rate = worked / seconds
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} a second" + (f", {duration((total - done) / rate)} left" if done < total else "")


def progress_line(topic: str, done: int, total: int, what: str, note: str = "") -> None:
    """Show the progress of a long piece of work: one changing line in a terminal, about ten lines in a file."""
    text = f"{topic:<10}{done:,}/{total:,} {what}  {100 * done / max(total, 1):.0f}%" + (f"  {note}" if note else "")
    finished = done >= total
    if columns := terminal_width(sys.stderr):
        # The carriage return only goes back to the start of a line that did not wrap.
        print(f"\r{text[: columns - 1]}\x1b[K", end="\n" if finished else "", file=sys.stderr, flush=True)
        _open_lines[:] = [] if finished else [topic]
        return
    # Work is done in shards and batches, so a step may pass over the number at which a tenth begins.
    tenth = 10 * done // max(total, 1)
    shown = _tenths_shown.get((topic, total), 0)
    if finished or tenth != shown:
        print(text, file=sys.stderr, flush=True)
    _tenths_shown[topic, total] = 0 if finished else tenth


@contextmanager
def waiting_line(topic: str, text: str, *, every_seconds: float | None = None) -> Iterator[None]:
    """Show the seconds for which the block has run: one line that renews itself in a terminal, else a line at times.

    Args:
        topic: first word of the line.
        text: says what is waited for.
        every_seconds: time between two lines; None is 1 s in a terminal, which is cleared at the end, and 30 s in a
            file, where a wait that is shorter leaves nothing.
    """
    terminal = sys.stderr.isatty()
    interval = every_seconds or (1.0 if terminal else 30.0)
    began = time.monotonic()
    over = threading.Event()

    def show() -> None:
        line = f"{topic:<10}{text}, {duration(time.monotonic() - began)}"
        if terminal:
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
            _open_lines[:] = [topic]
        else:
            print(line, file=sys.stderr, flush=True)

    def renew() -> None:
        while not over.wait(interval):
            show()

    if terminal:
        show()
    thread = threading.Thread(target=renew, name="aweigh-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if terminal and _open_lines:
            _open_lines.clear()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def end_progress_line() -> None:
    """Make the next output start on a line of its own."""
    if _open_lines:
        _open_lines.clear()
        print(file=sys.stderr, flush=True)


_open_lines: list[str] = []
"""Topic of the terminal line that is still changing; empty if there is none."""
_tenths_shown: dict[tuple[str, int], int] = {}
"""By topic and total: the tenths of the work at the last line in a file."""

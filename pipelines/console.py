"""What a person reads: one line for one thing, the same columns every time; progress to stderr, results to stdout."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_shards.counting import counted

if TYPE_CHECKING:
    from pipelines.evaluation.evaluate import Evaluation


def say(topic: str, text: str) -> None:
    """One line of what will happen or has happened, on stderr."""
    end_progress_line()
    print(f"{topic:<10}{text}", file=sys.stderr, flush=True)


def step_line(step: int, last_step: int, losses: dict[str, float], pace: dict[str, float], remaining: float) -> str:
    """A recorded step: where it stands, what it lost, how fast it goes."""
    parts = ", ".join(f"{name} {value:.3g}" for name, value in losses.items() if name != "loss")
    return (
        f"step {step:,}/{last_step:,}  {100 * step / last_step:.1f}%  loss {losses['loss']:.3g} ({parts})  "
        f"{pace['time/images_per_second']:.1f} img/s  data {100 * pace['time/data_fraction']:.0f}%  "
        f"eta {duration(remaining)}"
    )


def evaluation_line(epoch: int, evaluation: "Evaluation", seconds: float) -> str:
    """An evaluation in one line."""
    found = evaluation.coco
    loss = f"  loss {evaluation.losses['loss']:.3g}" if "loss" in evaluation.losses else ""
    return (
        f"eval epoch {epoch}  AP {_figure(found.AP)}  AP50 {_figure(found.AP50)}  AP75 {_figure(found.AP75)}{loss}  "
        f"{evaluation.num_images:,} images in {duration(seconds)}"
    )


def resumed_line(attempt: int, step: int, steps_per_epoch: int) -> str:
    """Where an attempt goes on."""
    epochs, steps = divmod(step, steps_per_epoch)
    done = f"{counted(epochs, 'epoch')} and {counted(steps, 'step')} done"
    return f"resumed   attempt {attempt} at step {step:,}: {done}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


class Pace:
    """Rate and time left of a long work, from when this is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def note(self, done: int, total: int, skipped: int = 0) -> str:
        """Such as "310 a second, 2 m 10 s left"; `skipped` of what is done took no time. Empty before anything is."""
        worked, seconds = done - skipped, time.monotonic() - self._began
        if worked <= 0 or seconds <= 0:
            return ""
        rate = worked / seconds
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} a second" + (f", {duration((total - done) / rate)} left" if done < total else "")


def progress_line(topic: str, done: int, total: int, what: str, note: str = "") -> None:
    """How far a long work is: one line that renews itself in a terminal, about ten lines in a file."""
    text = f"{topic:<10}{done:,}/{total:,} {what}  {100 * done / max(total, 1):.0f}%" + (f"  {note}" if note else "")
    finished = done >= total
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="\n" if finished else "", file=sys.stderr, flush=True)
        _open_lines[:] = [] if finished else [topic]
        return
    # Work is done in shards and batches, so a step may pass over the number at which a tenth begins.
    tenth = 10 * done // max(total, 1)
    told = _tenths_told.get((topic, total), 0)
    if finished or tenth != told:
        print(text, file=sys.stderr, flush=True)
    _tenths_told[topic, total] = 0 if finished else tenth


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
    """Let what is printed next begin a line of its own."""
    if _open_lines:
        _open_lines.clear()
        print(file=sys.stderr, flush=True)


_open_lines: list[str] = []
"""The topic of a line in the terminal that is still renewed; empty where there is none."""
_tenths_told: dict[tuple[str, int], int] = {}
"""How many tenths of a work the last line in a file told of."""

"""The loader process and its ring of slots: what is handed over, and what is left when somebody is killed."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_shards.building.build import BuildReport
from data_shards.errors import LoaderError
from data_shards.loading.augment import augment
from data_shards.loading.batch import Batch
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import World, make_plan
from tests.data_shards.loaders import training_loader

INPUT = (64, 96)
ROOT = Path(__file__).resolve().parents[3]


def loader(report: BuildReport, **options: object) -> TrainingLoader:
    plan = make_plan(report.manifest, seed=4, global_batch_size=6)
    return training_loader(report.location, plan, World(1, 0), input_size=INPUT, **options)  # type: ignore[arg-type]


def there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def gone(process: int) -> bool:
    """Whether a process that is about to end does, or ended and only waits for its parent to notice."""
    for _ in range(600):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def address(batch: Batch) -> int:
    return batch.images.data_ptr()


def test_batches_lie_in_memory_that_is_used_again_when_they_are_let_go(built: BuildReport) -> None:
    with loader(built, prefetch=1) as batches:
        places = set()
        for _ in range(20):
            batch = next(batches)
            places.add(address(batch))
    # One that is worked on, one that is used, one that is handed over.
    assert 1 < len(places) <= 3


def test_a_batch_that_is_kept_is_never_written_over(built: BuildReport) -> None:
    with loader(built, prefetch=1, stop_step=12) as batches:
        kept = list(batches)
    with loader(built, prefetch=2, stop_step=12) as batches:
        for one, other in zip(kept, batches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.labels, other.labels)


def test_a_single_tensor_holds_its_slot_after_the_loader_is_closed(built: BuildReport) -> None:
    with loader(built, prefetch=1) as batches:
        row = next(batches).images[2]
        expected = row.clone()
        later = [address(next(batches)) for _ in range(8)]
    assert torch.equal(row, expected)
    # The storage begins with the batch's first pixel.
    assert row.untyped_storage().data_ptr() not in later
    del row
    gc.collect()


def test_augmenting_in_place_does_not_reach_the_next_batch(built: BuildReport) -> None:
    class Plain:
        channel_order, mean, std, scale = "rgb", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0

    with loader(built, prefetch=1, stop_step=8) as batches:
        for batch in batches:
            augment(batch, Plain())  # type: ignore[arg-type]
            batch.images.fill_(255)
            batch.labels.fill_(7)
    with loader(built, prefetch=1, stop_step=8) as batches, loader(built, prefetch=3, stop_step=8) as others:
        for one, other in zip(batches, others, strict=True):
            assert torch.equal(one.images, other.images)
            one.images.fill_(255)
            assert torch.equal(one.labels, other.labels)
            one.labels.fill_(7)


def test_a_loader_process_that_is_killed_is_an_error_that_names_it(built: BuildReport) -> None:
    batches = loader(built, prefetch=1)
    next(batches)
    os.kill(batches.process_id, signal.SIGKILL)
    with pytest.raises(LoaderError, match=rf"the loader process \(pid {batches.process_id}\) was killed by SIGKILL"):
        list(batches)
    assert not there(batches.process_id)
    assert list(batches) == []


def test_a_loader_process_that_cannot_start_is_an_error_too(
    built: BuildReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.loading.shared_memory._PROGRAM", "import sys; sys.exit(3)")
    batches = loader(built)
    with pytest.raises(LoaderError, match=r"the loader process \(pid \d+\) ended with status 3"):
        next(batches)


def test_closing_in_the_middle_of_the_work_returns_at_once(built: BuildReport) -> None:
    for taken in (0, 1):
        batches = loader(built, threads=4, prefetch=8)
        for _ in range(taken):
            next(batches)
        batches.close()
        assert not there(batches.process_id)


TRAINER = """
import sys, time
from data_shards.loading.training_loader import TrainingLoader
from data_shards.order.plan import World, make_plan
from data_shards.reading.reading import Reading
from data_shards.reading.split import open_split

split = open_split(sys.argv[1])
plan = make_plan(split.manifest, seed=4, global_batch_size=6)
batches = TrainingLoader(Reading(split=split, prefetch=2), plan, World(1, 0), input_size=(64, 96))
batch = next(batches)
print(batches.process_id, flush=True)
if sys.argv[2] == "fork":
    import os
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
time.sleep(600)
"""


@pytest.mark.parametrize("forks", ["alone", "fork"])
def test_a_trainer_that_is_killed_leaves_no_process_and_no_named_memory(
    built: BuildReport, tmp_path: Path, forks: str
) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, built.location, forks],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    assert trainer.stdout is not None
    process = int(trainer.stdout.readline())
    forked = int(trainer.stdout.readline()) if forks == "fork" else None
    assert there(process)
    # What the two share has no name anywhere.
    maps = Path(f"/proc/{process}/maps").read_text()
    assert "/memfd:aweigh-loader (deleted)" in maps
    assert "/dev/shm/" not in maps
    assert str(tmp_path) not in maps
    trainer.kill()
    trainer.wait()
    try:
        assert gone(process)
    finally:
        if forked is not None:
            os.kill(forked, signal.SIGKILL)
        trainer.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_the_loader_process_imports_no_torch() -> None:
    program = (
        "import sys, data_shards.loading.loader_process; "
        "print([name for name in ('torch', 'ray', 'boto3', 'pydantic', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


class Runtime:
    """The two calls of the CUDA runtime, as a driver that refuses or accepts to pin would answer them."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.registered: list[int] = []
        self.mapped_at_the_end: list[bool] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - the library's name
        self.registered.append(address)
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - the library's name
        self.mapped_at_the_end.append(is_mapped(address))
        return self.answer


def is_mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(edge, 16) for edge in line.split()[0].split("-"))
        if first <= address < last:
            return True
    return False


def test_pinned_memory_is_unregistered_while_it_is_still_mapped(
    built: BuildReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(answer=0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    with loader(built) as batches:
        batch = next(batches)
        assert batch._lease is not None
        assert batch._lease.pin()
        assert batch._lease.pin()  # a second time asks for nothing
        assert len(runtime.registered) == 1
        assert is_mapped(runtime.registered[0])
    del batches
    gc.collect()
    assert runtime.mapped_at_the_end == []  # a batch still uses the memory
    del batch
    gc.collect()
    assert runtime.mapped_at_the_end == [True]


def test_the_error_of_memory_that_is_not_pinned_does_not_wait_for_the_next_kernel(
    built: BuildReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = ["CUDA error: operation not supported"]

    def kernel(*arguments: object, **named: object) -> None:
        # As torch's check of a launch does: it takes the last error of the runtime, and raises it.
        raise RuntimeError(left.pop())

    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(answer=801))
    with loader(built) as batches:
        batch = next(batches)
        assert batch._lease is not None
        monkeypatch.setattr(torch, "zeros", kernel)
        assert not batch._lease.pin()
        assert left == []
        assert not batch._lease.pin()

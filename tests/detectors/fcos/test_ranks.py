"""Denominators over ranks: two processes are as one with both images, also when one of them has no object."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

import detectors
from detectors.fcos.fcos import FCOSTargets
from detectors.fcos.network import TrainingOutputs
from detectors.layers.feature_pyramid import grid_sizes

SIZE = (64, 64)


def outputs(rows: list[int]) -> TrainingOutputs:
    generator = torch.Generator().manual_seed(0)
    grids = grid_sizes(SIZE)
    return TrainingOutputs(
        *([torch.rand(3, count, *grid, generator=generator)[rows] for grid in grids] for count in (3, 4, 1))
    )


def losses_of(rows: list[int], variant: str, training: bool) -> dict[str, Tensor]:
    detector = detectors.build("fcos_resnet50", 3, variant=variant, width=4, channels=64)
    boxes = tensor([[[8.0, 8.0, 40.0, 44.0]], [[4.0, 20.0, 24.0, 60.0]], [[0.0, 0.0, 0.0, 0.0]]])
    targets: FCOSTargets = detector.encode(boxes[rows], tensor([[0], [2], [-1]])[rows], SIZE)
    return detector.train(training).losses(outputs(rows), targets)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for variant in ("original", "torchvision"):
        both = losses_of([0] if rank == 0 else [1], variant, training=True)
        one = losses_of([0] if rank == 0 else [2], variant, training=True)
        # Rank 0 alone: nothing is exchanged in evaluation, or this would wait for ever.
        alone = losses_of([0], variant, training=False) if rank == 0 else {}
        results[variant] = [both, one, alone]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, Tensor]]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, str(folder))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_the_mean_over_ranks_is_the_loss_of_the_joined_batch(
    results: list[dict[str, list[dict[str, Tensor]]]],
) -> None:
    first, second = (rank["original"] for rank in results)
    for step, other in enumerate((1, 2)):
        joined = losses_of([0, other], "original", training=False)
        for name, value in joined.items():
            assert_close((first[step][name] + second[step][name]) / 2, value)
    assert second[1]["box"] == second[1]["centerness"] == 0  # the rank without a positive point


def test_torchvision_divides_by_its_own_and_so_does_evaluation(
    results: list[dict[str, list[dict[str, Tensor]]]],
) -> None:
    alone = losses_of([0], "torchvision", training=False)
    for step in range(3):
        assert_close(results[0]["torchvision"][step], alone)
    assert_close(results[0]["original"][2], losses_of([0], "original", training=False))

"""fp16 with a dynamic loss scale: near to fp32 at every ZeRO stage."""

import torch

from cluster.settings import EngineSettings
from tests.cluster.engine.toy import train
from tests.cluster.processes import run_processes


def test_fp16_with_a_loss_scale_trains_near_to_fp32() -> None:
    run_processes(_near_fp32, 2)


def _near_fp32(rank: int) -> None:
    for stage in (0, 1, 2, 3):
        states = []
        for precision in ("fp32", "fp16"):
            settings = EngineSettings(zero_stage=stage, precision=precision, clip_norm=0.1)  # type: ignore[arg-type]
            states.append(train(rank, 2, settings, torch.optim.SGD, range(4), None).state())
        if rank == 0:
            for name, value in states[0].weights.items():
                torch.testing.assert_close(states[1].weights[name], value, rtol=1e-2, atol=2e-3, msg=f"{stage} {name}")

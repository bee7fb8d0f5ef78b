"""The average of the weights: the plain recursion over the steps, at every ZeRO stage."""

import torch
from torch import Tensor

from cluster.settings import EngineSettings
from tests.cluster.engine.toy import train
from tests.cluster.processes import run_processes


def _average(rank: int) -> None:
    for stage in (0, 1, 3):
        expected: dict[str, Tensor] = {}
        for steps in range(4):
            settings = EngineSettings(zero_stage=stage, precision="fp32", ema_decay=0.25)  # type: ignore[arg-type]
            state = train(rank, 2, settings, torch.optim.SGD, range(steps), None).state()
            if state is None:
                continue
            for name, value in state.weights.items():
                decay = min(0.25, (1 + steps) / (10 + steps))  # 2/11, 3/12, then 0.25
                known = expected.get(name)
                floating = known is not None and value.is_floating_point()
                expected[name] = decay * known + (1 - decay) * value if floating else value  # type: ignore[operator]
        if rank == 0:
            assert state is not None
            for name, value in expected.items():
                torch.testing.assert_close(state.ema[name], value, rtol=1e-5, atol=1e-6, msg=f"{stage} {name}")


def test_the_average_of_the_weights_is_the_plain_recursion_at_every_stage() -> None:
    run_processes(_average, 2)

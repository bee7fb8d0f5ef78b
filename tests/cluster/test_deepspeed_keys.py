"""DeepSpeed's keys: those without effect are refused, by name and with the remedy."""

import re
from typing import Any, Literal

import pytest

from cluster.deepspeed_keys import _STAGES
from cluster.errors import ClusterError
from cluster.settings import EngineSettings


@pytest.mark.parametrize(
    ("stage", "keys", "said"),
    [
        (1, {"zero_optimization": 5}, "zero_optimization is 5, but it is a group of keys"),
        (1, {"flops_profiler": {"enabeld": True}}, "flops_profiler.enabeld has no effect in DeepSpeed 0.19; did you"),
        (1, {"data_types": {"buffer_dtype": "bf16"}}, "data_types.buffer_dtype has no effect"),
        (1, {"disable_allgather": True}, "disable_allgather has no effect in DeepSpeed 0.19"),
        (1, {"fp16": {"enabled": True}}, "fp16 is derived by aweigh; set engine.precision instead"),
        (1, {"optimizer": {"type": "Adam"}}, "set optimizer.name instead"),
        (
            1,
            {"communication_data_type": "bf16"},
            "set engine.gradient_exchange instead",
        ),
        (
            0,
            {"zero_optimization": {"overlap_comm": True}},
            "overlap_comm has no effect at engine.zero_stage 0; it is used",
        ),
        (
            2,
            {"zero_optimization": {"stage3_max_live_parameters": 1}},
            "no effect at engine.zero_stage 2; it is used at 3",
        ),
        (
            3,
            {"zero_optimization": {"round_robin_gradients": True}},
            "no effect at engine.zero_stage 3; it is used at 1 and 2",
        ),
        (
            1,
            {"zero_optimization": {"elastic_checkpoint": True}},
            "elastic_checkpoint has no effect: aweigh does not use",
        ),
    ],
)
def test_keys_that_deepspeed_would_ignore_are_refused(
    stage: Literal[0, 1, 2, 3], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ClusterError, match=re.escape(said)):
        EngineSettings(zero_stage=stage, deepspeed=keys)


def test_the_keys_of_zero_that_are_sorted_by_stage_are_ones_that_deepspeed_has() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.keys()
    assert _STAGES.keys() - {name.removeprefix("stage3_") for name in fields} == set()

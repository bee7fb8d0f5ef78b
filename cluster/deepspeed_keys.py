"""The keys of DeepSpeed's JSON configuration that a recipe may set: those that have an effect at its ZeRO stage.

Unusual here: DeepSpeed 0.19 silently ignores unknown keys at the top level and in some groups, and known keys that the
stage does not use. Such keys are refused here. The lists were read from its `runtime/config.py`, `engine.py` and
`zero`; DeepSpeed itself checks `zero_optimization` as well.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.errors import ClusterError

_TOP = frozenset(
    {
        *("comms_logger", "data_types", "disable_python_gc", "dump_state"),
        *("flops_profiler", "gradient_allreduce_op", "gradient_predivide_factor", "memory_breakdown"),
        *("prescale_gradients", "steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer"),
        *("zero_force_ds_cpu_optimizer", "zero_optimization"),
    }
)
# Keys that aweigh derives from these settings; two sources for one number would drift apart.
_ELSEWHERE = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.microbatch_limit",
    "gradient_accumulation_steps": "batch.microbatch_limit",
    "gradient_clipping": "engine.clip_norm",
    **dict.fromkeys(("torch_autocast", "bf16", "fp16"), "engine.precision"),
    "communication_data_type": "engine.gradient_exchange",
    "optimizer": "optimizer.name",
    "scheduler": "schedule.drops_at",
    "activation_checkpointing": "detector.settings.activation_checkpointing",
    "checkpoint": "checkpoint.every_minutes",
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), "tracking.uri"),
}
# Groups in which DeepSpeed reads these keys and ignores all others.
_GROUPS = {
    "data_types": frozenset({"grad_accum_dtype"}),
    "flops_profiler": frozenset(
        {
            *("enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed"),
            "output_file",
        }
    ),
    "comms_logger": frozenset({"enabled", "prof_all", "prof_ops", "verbose", "debug"}),
}
_CHOICES = {
    "gradient_allreduce_op": ("mean", "sum"),
}
# Keys of zero_optimization and the stages that use them; keys that are not listed are used at 1, 2 and 3.
_STAGES = {
    **dict.fromkeys(
        (
            *("allgather_bucket_size", "compute_grad_norm", "ignore_unused_parameters", "parameter_alignment"),
            *("round_robin_gradients", "use_multi_rank_bucket_allreduce"),
        ),
        (1, 2),
    ),
    **dict.fromkeys(
        (
            *("allgather_sequential", "cpu_offload_param", "enable_sanity_checks", "leaf_module"),
            *("log_trace_cache_warnings", "max_live_parameters", "max_reuse_distance", "memory_efficient_linear"),
            *("model_persistence_threshold", "module_granularity_threshold", "offload_param", "override_module_apply"),
            *(
                "param_persistence_threshold",
                "prefetch_bucket_size",
                "sub_group_size",
                "use_all_reduce_for_fetch_params",
            ),
            *("zero_hpz_partition_size", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"),
            "zero_quantized_weights",
        ),
        (3,),
    ),
    # They belong to DeepSpeed's own checkpoints and to optimizers that aweigh does not use.
    **dict.fromkeys(
        (
            *("allgather_partitions", "elastic_checkpoint", "gather_16bit_weights_on_model_save", "legacy_stage1"),
            *("gather_fp16_weights_on_model_save", "load_from_fp32_weights", "pipeline_loading_checkpoint"),
            "save_muon_momentum_buffer_in_memory",
        ),
        (),
    ),
}
# Keys that make DeepSpeed report something.
_REPORTING = frozenset(
    {"comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print", "wall_clock_breakdown"}
)


def check_keys(given: Mapping[str, Any], zero_stage: int) -> None:
    """Refuse keys that DeepSpeed would ignore, and keys that aweigh derives from other settings.

    Raises:
        ClusterError: names the first of them, and the setting to use instead.
    """
    for key, value in given.items():
        if key in _ELSEWHERE:
            raise ClusterError(f"engine.deepspeed.{key} is derived by aweigh; set {_ELSEWHERE[key]} instead.")
        if key not in _TOP:
            raise ClusterError(f"engine.deepspeed.{key} has no effect in DeepSpeed 0.19{_nearest(key, _TOP)}")
        if key == "zero_optimization" or key in _GROUPS:
            if not isinstance(value, Mapping):
                raise ClusterError(f"engine.deepspeed.{key} is {value!r}, but it is a group of keys: set one of them.")
            for inner in value if key in _GROUPS else ():
                if inner not in _GROUPS[key]:
                    raise ClusterError(
                        f"engine.deepspeed.{key}.{inner} has no effect in DeepSpeed 0.19{_nearest(inner, _GROUPS[key])}"
                    )
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ClusterError(f"engine.deepspeed.{key} is {value!r}; set it to one of {', '.join(_CHOICES[key])}.")
    _check_stage(given.get("zero_optimization", {}), zero_stage)


def asks_for_reports(given: Mapping[str, Any]) -> bool:
    """Return True if a key makes DeepSpeed report something, which it logs below the level of a warning."""
    return not _REPORTING.isdisjoint(given)


def _check_stage(zero: Mapping[str, Any], zero_stage: int) -> None:
    if "stage" in zero:
        raise ClusterError("engine.deepspeed.zero_optimization.stage is derived by aweigh; set engine.zero_stage.")
    for key in zero:
        stages = _STAGES.get(key.removeprefix("stage3_"), (1, 2, 3))
        if not stages:
            raise ClusterError(
                f"engine.deepspeed.zero_optimization.{key} has no effect: aweigh does not use that part of DeepSpeed. "
                f"Remove it."
            )
        if zero_stage not in stages:
            raise ClusterError(
                f"engine.deepspeed.zero_optimization.{key} has no effect at engine.zero_stage {zero_stage}; it is used "
                f"at {' and '.join(map(str, stages)) if len(stages) < 3 else '1, 2 and 3'}. Remove it, or change the "
                f"stage."
            )


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."

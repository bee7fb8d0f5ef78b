"""The variables of an environment that reach the workers, on whatever node they run."""

from collections.abc import Mapping

# Of the stores, MLflow, ourselves, and what decides how GPUs, networks and torch behave. Never Ray's token: whoever can
# read it controls the cluster.
_PREFIXES = (
    *("AWS_", "MLFLOW_", "AWEIGH_"),
    *("NCCL_", "GLOO_", "FI_"),
    *("TORCH_", "PYTORCH_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "OMP_"),
    "RAY_TRAIN_",
)
# Ray, the driver and the container decide on each node which GPUs a process sees.
_OF_THE_NODE = frozenset({"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "TORCH_HOME"})


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose the variables that workers take over."""
    return {
        name: value for name, value in environment.items() if name.startswith(_PREFIXES) and name not in _OF_THE_NODE
    }

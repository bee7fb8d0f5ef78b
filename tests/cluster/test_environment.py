"""The variables that workers take over."""

from cluster.environment import carried


def test_what_decides_how_gpus_and_networks_behave_reaches_the_workers() -> None:
    wanted = dict.fromkeys(
        ("CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_NCCL_TRACE_BUFFER_SIZE"),
        "1",
    ) | {"FI_PROVIDER": "efa", "NCCL_DEBUG": "INFO", "AWS_REGION": "eu-central-1"}
    assert carried({**wanted, "PATH": "/bin", "RAY_AUTH_TOKEN": "secret"}) == wanted


def test_the_gpus_that_a_process_may_see_are_decided_on_its_node() -> None:
    assert carried({"CUDA_VISIBLE_DEVICES": "3", "NVIDIA_VISIBLE_DEVICES": "all", "CUDA_HOME": "/opt/cuda"}) == {}

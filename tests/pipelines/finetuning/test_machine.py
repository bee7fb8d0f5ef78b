import psutil
import pytest
import torch

import detectors
from pipelines.finetuning.machine import Cost, Machine, images_that_fit, this_machine, training_cost


def test_the_cost_counts_parameters_and_activations_and_leaves_the_detector_as_it_was() -> None:
    torch.manual_seed(0)
    detector = detectors.build("centernet_resnet18", 3, width=8, deconv_channels=[8, 8, 8], head_channels=8)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    state = torch.random.get_rng_state()
    cost = training_cost(detector)
    assert cost.parameter_bytes == 16 * sum(one.numel() for one in detector.parameters())
    # The stem alone keeps the input and, at half its resolution, 8 channels three times over: 3 + 3 × 8 / 4 floats.
    assert cost.bytes_per_pixel > 4 * 9
    assert cost.seconds_per_pixel > 0
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(one.grad is None for one in detector.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_wider_network_costs_more() -> None:
    narrow, wide = (
        training_cost(detectors.build("centernet_resnet18", 3, width=width, deconv_channels=[8, 8, 8], head_channels=8))
        for width in (8, 16)
    )
    assert wide.bytes_per_pixel > narrow.bytes_per_pixel
    assert wide.parameter_bytes > narrow.parameter_bytes


def test_images_fit_into_what_the_weights_leave() -> None:
    cost = Cost(parameter_bytes=1_000_000, bytes_per_pixel=100.0, seconds_per_pixel=0.0)
    assert images_that_fit(Machine("cpu", 1, 1, 11_000_000), cost, (100, 100)) == 10
    assert images_that_fit(Machine("cpu", 1, 1, 10), cost, (100, 100)) == 1


def test_half_of_the_free_memory_is_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 6_000_000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    machine = this_machine("cpu")
    assert (machine.device, machine.workers, machine.memory_bytes) == ("cpu", 1, 3_000_000)

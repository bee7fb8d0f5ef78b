"""The arithmetic of weak scaling, by hand."""

import pytest

from pipelines.scaling import checkpoint_bytes, efficiency, network, reduce_seconds


def test_an_all_reduce_is_a_ring_inside_the_nodes_and_one_between_them() -> None:
    # 8 GPUs: 2 × 7/8 × 300 MB at 300 GB/s = 1.75 ms.
    assert reduce_seconds(300e6, 8, 1e9) == pytest.approx(1.75e-3)
    # 16 GPUs: beside it 2 × 1/2 × 300 MB at 1 GB/s = 300 ms, and 2 hops of 20 µs.
    assert reduce_seconds(300e6, 16, 1e9) == pytest.approx(1.75e-3 + 0.3 + 40e-6)


def test_what_does_not_hide_behind_backward_lengthens_the_step() -> None:
    assert efficiency(0.2, 0.3) == pytest.approx(1)  # backward is 0.2 s of it
    assert efficiency(0.5, 0.3) == pytest.approx(0.5)  # 0.3 s more


def test_networks_are_counted_without_weights() -> None:
    counted = network("centernet_resnet18")
    assert counted.parameter_bytes == pytest.approx(4 * 15.7e6, rel=0.02)
    state, own = checkpoint_bytes(counted, 1024)
    assert state == 3 * counted.parameter_bytes + counted.buffer_bytes
    assert own == 1024 * counted.buffer_bytes

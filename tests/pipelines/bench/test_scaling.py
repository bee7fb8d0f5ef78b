"""The arithmetic of weak scaling, by hand, and the document that shows it."""

import textwrap
from pathlib import Path

import pytest

from pipelines.bench.scaling import checkpoint_bytes, communication, network, pass_seconds
from pipelines.cli import main

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "scaling.md"


def test_a_pass_is_a_ring_inside_the_nodes_and_one_between_them() -> None:
    # 8 GPUs: 7/8 × 300 MB at 300 GB/s = 0.875 ms.
    assert pass_seconds(300e6, 8, 1e9) == pytest.approx(0.875e-3)
    # 16 GPUs: and 1/2 × 300 MB at 1 GB/s = 150 ms, and a hop of 20 µs.
    assert pass_seconds(300e6, 16, 1e9) == pytest.approx(0.875e-3 + 0.15 + 20e-6)


def test_communication_outside_of_backward_lengthens_the_step() -> None:
    # A pass of 0.1 s: two for gradients and one for weights, of a step of 0.3 s.
    assert communication(0.1, 1, 0.3, overlap=False) == pytest.approx((0.3, 0.5))
    assert communication(0.1, 0, 0.3, overlap=False) == pytest.approx((0.2, 0.6))
    # Backward is 0.2 s: the gradients hide behind it, the weights do not.
    assert communication(0.1, 1, 0.3, overlap=True) == pytest.approx((0.3, 0.75))
    assert communication(0.2, 1, 0.3, overlap=True) == pytest.approx((0.6, 0.3 / (0.3 + 0.2 + 0.2)))


def test_networks_are_counted_without_weights() -> None:
    counted = network("centernet_resnet18")
    assert counted.parameter_bytes == pytest.approx(4 * 15.7e6, rel=0.02)
    state, own = checkpoint_bytes(counted, 1024)
    assert state == 3 * counted.parameter_bytes + counted.buffer_bytes
    assert own == 1024 * counted.buffer_bytes


def test_the_document_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "scaling"])
    assert textwrap.indent(capsys.readouterr().out, "    ") in DOCUMENT.read_text()
    with pytest.raises(SystemExit):
        main(["bench", "scaling", "--zero-stage", "0", "--overlap"])
    assert "DeepSpeed reduces after backward at stage 0" in capsys.readouterr().err

"""The engine: the training that plain torch does, at every ZeRO stage, and a resumed run bit for bit."""

from pathlib import Path

import pytest
import torch

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.engine.engine import check_deepspeed, choose_arithmetic, deepspeed_config, split_batch
from cluster.errors import ClusterError
from cluster.settings import EngineSettings
from tests.cluster.engine.toy import Toy, batch, train
from tests.cluster.processes import run_processes


def _save_whole_and_resumed(
    rank: int, folder: str, stage: int, optimizer: type[torch.optim.Optimizer], precision: str
) -> None:
    settings = EngineSettings(
        zero_stage=stage,  # type: ignore[arg-type]
        clip_norm=0.5,
        precision=precision,  # type: ignore[arg-type]
        ema_decay=0.9 if precision == "fp16" else 0.0,
    )
    checkpoints = CheckpointFolder(Path(folder), keep=9)
    half = train(rank, 2, settings, optimizer, range(3), None).state()
    if rank == 0:
        assert half is not None
        checkpoints.save(half, {"step": 3})
    torch.distributed.barrier()
    resumed_from = checkpoints.latest()
    assert resumed_from is not None
    resumed = train(rank, 2, settings, optimizer, range(3, 6), resumed_from.training_state()).state()
    whole = train(rank, 2, settings, optimizer, range(6), None).state()
    if rank == 0:
        assert resumed is not None
        assert whole is not None
        checkpoints.save(whole, {"step": 6})
        for part in ("weights", "optimizer", "per_rank", "ema"):
            expected, found = getattr(whole, part), getattr(resumed, part)
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                assert torch.equal(value, found[name]), f"{part} {name}"


CASES = [
    (stage, optimizer, precision)
    for optimizer, precision in (
        *(
            (torch.optim.Adam, "fp32"),
            (torch.optim.SGD, "fp32"),
            (torch.optim.Adam, "bf16"),
            (torch.optim.Adam, "fp16"),
        ),
    )
    for stage in (0, 1, 2, 3)
]


def _each_case(rank: int, folder: str) -> None:
    for stage, optimizer, precision in CASES:
        place = f"{folder}/{optimizer.__name__}-{precision}-{stage}"
        _save_whole_and_resumed(rank, place, stage, optimizer, precision)


def test_a_resumed_run_is_bitwise_the_run_never_interrupted_at_every_zero_stage(tmp_path: Path) -> None:
    run_processes(_each_case, 2, str(tmp_path))
    for stage, optimizer, precision in CASES:
        saved = CheckpointFolder(tmp_path / f"{optimizer.__name__}-{precision}-{stage}").latest()
        assert saved is not None
        assert saved.step == 6
        state = saved.training_state()
        # The file holds the complete training state under the network's own names, whatever the stage.
        assert {name: value.shape for name, value in state.weights.items()} == {
            name: value.shape for name, value in Toy().state_dict().items()
        }
        moment = "exp_avg_sq" if optimizer is torch.optim.Adam else "momentum_buffer"
        assert state.optimizer[f"convolution.weight|{moment}"].shape == (5, 3, 3, 3)
        if optimizer is torch.optim.Adam:
            assert state.optimizer["step"].item() == 6


def _frozen_case(rank: int, folder: str, stage: int) -> None:
    """Train with a frozen part at one stage, and resume it at all stages from its checkpoint."""
    adam = torch.optim.Adam
    before = {name: value.clone() for name, value in _started().items()}
    checkpoints = CheckpointFolder(Path(folder), keep=9)

    def settings(stage: int) -> EngineSettings:
        return EngineSettings(zero_stage=stage, clip_norm=0.5, precision="fp32", ema_decay=0.9)  # type: ignore[arg-type]

    half = train(rank, 2, settings(stage), adam, range(2), None, frozen=True).state()
    if rank == 0:
        assert half is not None
        checkpoints.save(half, {"step": 2})
    torch.distributed.barrier()
    resumed_from = checkpoints.latest()
    assert resumed_from is not None
    whole = train(rank, 2, settings(stage), adam, range(4), None, frozen=True).state()
    for other in (stage, (stage + 1) % 4):
        resumed = train(rank, 2, settings(other), adam, range(2, 4), resumed_from.training_state(), frozen=True).state()
        if rank == 0:
            assert resumed is not None
            assert whole is not None
            for part in ("weights", "optimizer", "per_rank", "ema"):
                expected, found = getattr(whole, part), getattr(resumed, part)
                assert expected.keys() == found.keys()
                for name, value in expected.items():
                    if other == stage:
                        assert torch.equal(value, found[name]), f"{part} {name}"
                    else:
                        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-6, msg=f"{part} {name}")
    if rank == 0:
        assert whole is not None
        # Neither weights nor statistics of the frozen part have moved, nor their average, and it has no state.
        for name, value in before.items():
            is_frozen = name.startswith(("convolution.", "norm."))
            assert torch.equal(whole.weights[name], value) == (is_frozen or name == "dead"), name
            assert not is_frozen or torch.equal(whole.ema[name], value), name
        assert not any(name.startswith(("convolution.", "norm.")) for name in whole.optimizer)
        assert "head.weight|exp_avg_sq" in whole.optimizer


def _started() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return Toy().state_dict()


def _each_frozen_case(rank: int, folder: str) -> None:
    for stage in (0, 1, 2, 3):
        _frozen_case(rank, f"{folder}/{stage}", stage)


def test_a_frozen_part_keeps_its_weights_and_statistics_and_resumes_at_every_zero_stage(tmp_path: Path) -> None:
    run_processes(_each_frozen_case, 2, str(tmp_path))


def _exchange_gradients(rank: int) -> None:
    def after_a_step(stage: int, precision: str, exchange: str) -> dict[str, torch.Tensor] | None:
        settings = EngineSettings(zero_stage=stage, precision=precision, gradient_exchange=exchange)  # type: ignore[arg-type]
        state = train(rank, 2, settings, torch.optim.SGD, range(1), None).state()
        return None if state is None else state.weights

    before = _started()
    # fp32 first: DeepSpeed's autocast, once begun in a process, decides about later engines, too.
    for precision in ("fp32", "bf16"):
        exact = after_a_step(0, precision, "fp32")
        for stage in (0, 1, 2, 3):
            same, rounded = (after_a_step(stage, precision, exchange) for exchange in ("fp32", "bf16"))
            if exact is None or same is None or rounded is None:
                continue
            for name in ("convolution.weight", "head.weight"):
                step = exact[name] - before[name]
                torch.testing.assert_close(same[name] - before[name], step, rtol=1e-5, atol=1e-7)
                # 8 bits of each gradient and of their sum; the decay is added afterwards.
                error = (rounded[name] - before[name] - step).abs().max() / step.abs().max()
                assert 1e-5 < error < 0.01, f"{precision} {stage} {name} {error}"


def test_gradients_are_exchanged_in_the_chosen_precision_at_every_zero_stage() -> None:
    run_processes(_exchange_gradients, 2)


def test_the_arithmetic_of_a_gpu_is_chosen_and_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        for tf32, deterministic in ((False, True), (True, False)):
            choose_arithmetic(EngineSettings(tf32=tf32, deterministic=deterministic), torch.device("cuda"))
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
            assert cudnn.deterministic == torch.are_deterministic_algorithms_enabled() == deterministic
            assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _train_plainly(steps: range) -> Toy:
    """The same training by torch alone: each half of the batch in two microbatches, gradients averaged."""
    torch.manual_seed(3)
    models = [Toy() for _ in range(2)]  # one for each rank: BatchNorm sees that rank's images only
    models[1].load_state_dict(models[0].state_dict())
    momenta = [torch.zeros_like(parameter) for parameter in models[0].parameters()]
    for step in steps:
        images, wanted = batch(step)
        for rank, model in enumerate(models):
            model.zero_grad()
            for part in range(2):
                rows = slice(4 * rank + 2 * part, 4 * rank + 2 * part + 2)
                (0.5 * (model(images[rows]) - wanted[rows]).square().mean()).backward()
        with torch.no_grad():
            for momentum, *copies in zip(momenta, *(model.parameters() for model in models), strict=True):
                if copies[0].grad is None:
                    continue
                is_decayed = copies[0].ndim > 1
                gradient = (copies[0].grad + copies[1].grad) / 2 + (0.1 * copies[0] if is_decayed else 0)
                momentum.mul_(0.9).add_(gradient)
                for copy in copies:
                    copy.sub_(0.01 / (1 + step) * (1.0 if is_decayed else 2.0) * momentum)
    for (_, first), (_, second) in zip(models[0].named_buffers(), models[1].named_buffers(), strict=True):
        if first.is_floating_point():
            first.copy_((first + second) / 2)
    return models[0]


def _train_as_torch_does(rank: int) -> None:
    expected = _train_plainly(range(4)).state_dict()
    for stage in (0, 1, 2, 3):
        settings = EngineSettings(zero_stage=stage, precision="fp32")  # type: ignore[arg-type]
        state = train(rank, 2, settings, torch.optim.SGD, range(4), None).state()
        if rank == 0:
            assert state is not None
            for name, value in expected.items():
                torch.testing.assert_close(state.weights[name], value, rtol=1e-5, atol=1e-6, msg=f"{stage} {name}")


def test_every_zero_stage_trains_what_plain_torch_trains() -> None:
    run_processes(_train_as_torch_does, 2)


def _skip_a_step(rank: int) -> None:
    for stage in (0, 1, 2, 3):
        for precision in ("fp32", "fp16"):
            settings = EngineSettings(zero_stage=stage, precision=precision, ema_decay=0.9, not_finite="skip")  # type: ignore[arg-type]
            engine = train(rank, 2, settings, torch.optim.Adam, range(2), None)
            before = engine.state()
            images, wanted = (value[rank * 4 : rank * 4 + 4] for value in batch(2))
            if rank == 1:
                images = torch.full_like(images, torch.inf)  # one rank's BatchNorm and loss are NaN
            for part in range(2):
                rows = slice(2 * part, 2 * part + 2)
                engine.backward((engine.forward(images[rows]).float() - wanted[rows]).square().mean())
                engine.step()
            assert engine.skipped, (stage, precision)
            after = engine.state()
            if before is not None and after is not None:
                for kind in ("weights", "optimizer", "per_rank", "ema"):
                    for name, value in getattr(before, kind).items():
                        if not name.startswith("loss_scale|"):
                            assert torch.equal(value, getattr(after, kind)[name]), (stage, precision, kind, name)
                if precision == "fp16":
                    assert after.optimizer["loss_scale|value"] == before.optimizer["loss_scale|value"] / 2
            # And the next step is an ordinary one again.
            for rows in (slice(0, 2), slice(2, 4)):
                share = batch(3)[0][rank * 4 : rank * 4 + 4][rows]
                engine.backward(engine.forward(share).float().square().mean())
                engine.step()
            assert not engine.skipped


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all_and_leaves_no_trace() -> None:
    run_processes(_skip_a_step, 2)


def _train_in_two_buckets(rank: int) -> None:
    for stage in (1, 2, 3):
        states = []
        for keys in ({}, {"zero_optimization": {"reduce_bucket_size": 500_000_000}}):
            settings = EngineSettings(zero_stage=stage, precision="fp32", deepspeed=keys)  # type: ignore[arg-type]
            engine = train(rank, 2, settings, torch.optim.Adam, range(3), None)
            states.append(engine.state())
            elements = sum(getattr(one, "ds_numel", one.numel()) for one in engine.model.parameters())
            wanted = elements if not keys else 500_000_000
            assert engine.config["zero_optimization"]["reduce_bucket_size"] == wanted
        if rank == 0:
            for name, value in states[0].weights.items():
                assert torch.equal(states[1].weights[name], value), f"{stage} {name}"


def test_a_bucket_of_the_network_s_size_trains_as_deepspeed_s_own_large_one() -> None:
    run_processes(_train_in_two_buckets, 2)


def test_the_batch_is_split_into_equal_microbatches_under_the_limit() -> None:
    split = split_batch(128, 8, 6)  # 16 a rank; the largest divisor of 16 up to 6 is 4
    assert (split.microbatch_size, split.accumulation_steps) == (4, 4)
    assert str(split) == "128 = 4 per worker × 8 workers × 4 accumulation"
    assert str(split_batch(8, 1, 0)) == "8 = 8 per worker × 1 worker × 1 accumulation"
    assert split_batch(114, 6, 0).microbatch_size == 19


def test_a_batch_that_does_not_divide_is_refused_with_the_sizes_that_do() -> None:
    with pytest.raises(
        ClusterError, match=r"batch\.global_size 114 does not divide among 4 workers; set it to 112 or 116"
    ):
        split_batch(114, 4, 0)


def test_deepspeed_keys_override_one_by_one_and_unknown_ones_are_refused() -> None:
    settings = EngineSettings(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}})
    config = deepspeed_config(settings, split_batch(8, 2, 0), "bf16")
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    with pytest.raises(ClusterError, match="did you mean 'zero_optimization'"):
        EngineSettings(deepspeed={"zero_optimisation": {}})
    with pytest.raises(ClusterError, match=r"set engine\.clip_norm instead"):
        EngineSettings(deepspeed={"gradient_clipping": 1.0})
    with pytest.raises(ClusterError, match=r"stage is derived by aweigh; set engine\.zero_stage"):
        EngineSettings(deepspeed={"zero_optimization": {"stage": 3}})


def test_deepspeed_judges_its_own_keys_before_a_worker_does() -> None:
    check_deepspeed(EngineSettings(deepspeed={"zero_optimization": {"overlap_comm": True}}))
    with pytest.raises(ClusterError, match=r"zero_optimization\.nonsense is refused by DeepSpeed: extra inputs"):
        check_deepspeed(EngineSettings(deepspeed={"zero_optimization": {"nonsense": 1}}))
    check_deepspeed(EngineSettings(zero_stage=1, deepspeed={"zero_optimization": {"compute_grad_norm": False}}))

"""Ray's TorchTrainer with our handling of signals, and an elastic group whose sizes all divide the batch.

The only module that depends on Ray Train's internals (2.60). It imports Ray at once, so import it only after the Ray
cluster is connected; Ray's controller imports it too.
"""

import time
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2.api.config import ScalingConfig

from cluster.checkpoints.checkpoint import CheckpointFolder
from cluster.local import logs_folder
from cluster.ray_start import wait_for_controller
from cluster.signals import ignore_signals, take_signals_as_requests
from cluster.stopping import Stopping, ask_checkpoint

# A resize waits at most this long for the checkpoint that it asked for.
_CHECKPOINT_SECONDS = 60.0


class Trainer(TorchTrainer):
    """A TorchTrainer whose workers write a checkpoint before they stop or their number changes.

    Args:
        stopping: handler of the driver's signals; it receives the function that ends the workers.
        worlds: sizes that an elastic group may have; empty for a fixed size.
        folder: the run's folder.
        named: other arguments of TorchTrainer.
    """

    def __init__(
        self, *arguments: Any, stopping: Stopping, worlds: tuple[int, ...], folder: Path, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self._stopping = stopping
        self._worlds = worlds
        self._folder = folder

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        if self._worlds:
            named["scaling_policy"] = DividingPolicy(self.scaling_config, self._worlds, self._folder)
        return super()._initialize_and_run_controller(**named)

    def _register_sigint_handler(self, controller: Any) -> None:
        # As long as the controller is silent there are no workers to ask, and a signal ends the command at once.
        wait_for_controller(ray, controller, logs_folder())
        # Ray would abort at the first signal; we do at the second. `remote` only sends, for a handler must not wait.
        self._stopping.workers_run(lambda: controller.abort.remote())


class SurviveSignals(ControllerCallback, WorkerGroupCallback):
    """Makes Ray's controller and the workers survive a signal to every process, until the checkpoint is written."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ignore the signals in the controller: without it, Ray would end the workers."""
        ignore_signals()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Take the signals as requests in every worker."""
        worker_group.execute(take_signals_as_requests)


class DividingPolicy(ElasticScalingPolicy):
    """Ray's elastic policy, limited to world sizes that divide the batch, with a checkpoint before each change.

    Args:
        scaling_config: contains the fewest and the most workers.
        worlds: the sizes to choose from.
        folder: the run's folder.
    """

    def __init__(self, scaling_config: ScalingConfig, worlds: tuple[int, ...], folder: Path) -> None:
        super().__init__(scaling_config)
        self._worlds = worlds
        self._folder = folder
        self._asked = 0.0

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((world for world in self._worlds if world <= possible), default=0)

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Decide as Ray does, but delay a change of size until the training so far is in a checkpoint."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if not isinstance(decision, ResizeDecision):
            return decision
        # Ray looks every `elastic_resize_monitor_interval_s`; while a checkpoint is awaited, look at every poll.
        self._latest_monitor_time = float("-inf")
        if not self._asked:
            self._asked = ask_checkpoint(self._folder)
            return NoopDecision()
        written = [path.stat().st_mtime for path in CheckpointFolder(self._folder / "checkpoints").complete()]
        if max(written, default=0.0) < self._asked and time.time() - self._asked < _CHECKPOINT_SECONDS:
            return NoopDecision()
        self._asked = 0.0
        return decision

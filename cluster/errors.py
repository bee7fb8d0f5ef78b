"""The one error a user of this room may see."""


class ClusterError(RuntimeError):
    """Workers, engine settings or a checkpoint that cannot be used: one line with what, where and what to do."""


class WorkersFailedError(ClusterError):
    """Training had begun and could not go on; its checkpoints are kept."""


class StoppedError(WorkersFailedError):
    """Training was asked to stop and did; `signal` is the number of the signal that asked."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

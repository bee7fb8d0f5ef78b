"""Errors that a user may see."""


class ClusterError(RuntimeError):
    """Workers, settings or a checkpoint cannot be used; the message is one line: what, where, and what to do."""


class WorkersFailedError(ClusterError):
    """Training had begun and could not continue; its checkpoints are kept."""


class StoppedError(WorkersFailedError):
    """Training stopped because of a signal, whose number is `signal`."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

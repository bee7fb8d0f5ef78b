"""The errors of this room."""


class DataError(ValueError):
    """Data, or the place it lies in, that cannot be used: one line that says what, where and what to do."""


class UnavailableError(DataError):
    """A place that gives no answer in time, or has no room: that says nothing about the data which was asked for."""


class LoaderError(RuntimeError):
    """The process that reads for a trainer was lost, or fails: nothing that the data or a setting could change."""

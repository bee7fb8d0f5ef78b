"""The errors of this room."""


class DataError(ValueError):
    """Data, or the place it lies in, that cannot be used: one line that says what, where and what to do."""


class LoaderError(RuntimeError):
    """The process that reads for a trainer was lost, or fails: nothing that the data or a setting could change."""

"""The one error a user of this room may see."""


class DataError(ValueError):
    """Data, or the place it lies in, that cannot be used: one line that says what, where and what to do."""

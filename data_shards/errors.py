"""The errors of this package."""


class DataError(ValueError):
    """Data, or a location of data, cannot be used. The message is one line: the problem, the place and the remedy."""


class UnavailableError(DataError):
    """A location does not answer in time, or has no space left. This says nothing about the data itself."""


class LargerError(DataError):
    """A file has more bytes than it may have, so that it was not read to its end."""


class LoaderError(RuntimeError):
    """The loader process died, or failed for a reason other than the data or the settings."""

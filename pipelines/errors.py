"""The error that users of this package see."""


class ConfigError(ValueError):
    """A recipe, flag or run that cannot be used: one line that says what is wrong, where, and what to do."""

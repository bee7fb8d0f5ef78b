"""The one error a user of this room may see."""


class ConfigError(ValueError):
    """A recipe, flag or run that cannot be used: one line with what, where and what to do."""

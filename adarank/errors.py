"""The errors that reach a user as one sentence."""


class SettingError(ValueError):
    """A setting cannot be used as given.

    The message is one sentence that names the setting, its value and what would be valid;
    the command line prints it and exits with status 2.
    """


class RunFailed(RuntimeError):
    """A run ended without a result. The message is one sentence; the command line exits with status 1."""

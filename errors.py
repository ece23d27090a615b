"""The one kind of error that the command line shows without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or a call that its message alone explains: what was expected, what arrived, what to do."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another network; `details` has a line for each thing that does not fit."""

    def __init__(self, message: str, details=()):
        super().__init__(message)
        self.details = list(details)

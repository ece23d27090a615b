"""The one kind of error that the command line shows without a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or a call that its message alone explains: what was expected, what arrived, what to do."""

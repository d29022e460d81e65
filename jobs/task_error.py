"""The one kind of error that data raise."""


class TaskError(ValueError):
    """The data of a task cannot be used; the message says which file, which row and what instead."""

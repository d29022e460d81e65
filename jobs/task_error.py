"""The errors that data raise."""


class TaskError(ValueError):
    """The data of a task cannot be used; the message says which file, which row and what instead."""


class NotAtHand(TaskError):
    """The data are somewhere else, or what makes them is not installed here: a plan goes on without them."""

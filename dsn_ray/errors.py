"""The one kind of error that is the user's to mend, and the cause of the others."""

from typing import Any


class UserError(ValueError):
    """What was given cannot be used.

    The message is one whole sentence that says what is wrong, where (file, key or path) and what
    is allowed. Commands print it as it is and end with exit status 2.
    """


def innermost(error: BaseException) -> BaseException:
    """What was really wrong: Ray wraps errors several times."""
    cause: Any = error
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    return cause

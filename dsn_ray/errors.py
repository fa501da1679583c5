"""The one kind of error that is the user's to mend, and the one kind of warning for people."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class UserError(ValueError):
    """What was given cannot be used.

    The message is one whole sentence that says what is wrong, where (file, key or path) and what
    is allowed. Commands print it as it is and end with exit status 2.
    """


class DataWarning(UserWarning):
    """Something in the data that the numbers depend on; commands show it on one line."""


@contextmanager
def warnings_shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Hands every `DataWarning` to a function; other warnings go where they went."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        usual = warnings.showwarning

        def shown(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, DataWarning):
                show(f"{str(message).rstrip('.')}.")
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = shown
        yield


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The user stopped the work; the message says how to go on."""

"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """What was given cannot be used.

    The message is one whole sentence that says what is wrong, where (file, key or path) and what
    is allowed. Commands print it as it is and end with exit status 2.
    """

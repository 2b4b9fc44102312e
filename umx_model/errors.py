"""The one exception that means "the user can mend this"."""


class InputError(ValueError):
    """Input that cannot be used: a file, a folder, an option or a profile.

    The message is one line (or one line per problem) for the user to read: it names the file or
    option, what was found, what was expected and the remedy. Programs print it without a
    traceback and end with exit code 2.
    """

"""The one exception that users see."""


class AstroError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. The command line exits with 2."""

"""The exception for bad input."""


class AstroError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. The command line exits with code 2."""

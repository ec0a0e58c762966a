"""The exception for bad input, and which errors may go away by themselves."""

import errno
import os


class AstroError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. The command line exits with code 2."""


class TransientError(AstroError):
    """An accident, and no fault of the input: run the same command again. The command line exits with code 1."""


# What the operating system says of a wrong path, missing permission or a full disk: the same command fails again.
_PERMANENT = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EROFS, errno.EINVAL, errno.ENOSPC, errno.EDQUOT,
}  # fmt: skip


def lacks_space(message: str) -> bool:
    """Return whether a message is of a full disk or a full quota. Libraries put it into errors of their own types."""
    return any(os.strerror(number) in message for number in (errno.ENOSPC, errno.EDQUOT))


def is_transient(error: BaseException | None) -> bool:
    """Return whether an error, or an error that caused it, may go away: a lost connection, a busy service.

    Answers of a service are told by their HTTP status: 408, 429 and all from 500 on may go away. Errors of the
    operating system are told by their number. An OSError without a number is the message of a library about a file.
    """
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, TransientError) or _is_transient(error):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return False


def _is_transient(error: BaseException) -> bool:
    answer = getattr(error, "response", error)  # requests and huggingface_hub keep the answer
    for name in ("status_code", "code", "status"):
        status = str(getattr(answer, name, ""))
        if status.isdecimal() and int(status) >= 300:
            return int(status) in (408, 429) or int(status) >= 500
    if isinstance(error, (ConnectionError, TimeoutError)):
        return type(error).__name__ != "OfflineModeIsEnabled"  # HF_HUB_OFFLINE is a setting of the user
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _PERMANENT
    # Libraries of the network have exceptions of their own, as in requests.exceptions.ConnectionError.
    return any(word in type(error).__name__ for word in ("Connection", "Timeout", "Transport", "Disconnected"))

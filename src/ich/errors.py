"""Errors that the user can fix: printed as one line, without a traceback."""

import errno


class UserError(Exception):
    """What the user can mend: shown as one line, without a traceback."""


ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "work in a folder that may be written",
    errno.EACCES: "see to whom it belongs",
    errno.EPERM: "see to whom it belongs",
    errno.EMFILE: "allow more open files (ulimit -n 4096)",
    errno.ENFILE: "close other programs, for the machine has no file handle left",
}


def refused(path: object, error: OSError) -> UserError:
    """What to say where the system refused to read or write `path`: the reason, and what to do."""
    reason = error.strerror or str(error)
    advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
    return UserError(f"{path}: {reason}{advice}; what was finished is kept: run the same again")

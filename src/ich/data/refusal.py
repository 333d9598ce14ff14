"""Why a file cannot serve as a slice: the closed list of reasons (each explained in docs/reference/quarantine.md)."""

import errno
from enum import StrEnum

DETAIL = 100  # characters


class Reason(StrEnum):
    """Why a file is quarantined: the closed list."""

    UNREADABLE = "the file cannot be opened"
    NOT_DICOM = "this is not a DICOM file, or its header is damaged"
    NOT_CT_SLICE = "this is not a CT slice (another modality, a localizer or no picture)"
    NO_IDENTITY = "patient, study or series identifier is missing"
    BAD_SIZE = "rows, columns, frames or bits are missing or impossible"
    BAD_RESCALE = "slope or intercept is not a usable number"
    NOT_HOUNSFIELD = "its values are not Hounsfield units"
    TRUNCATED = "there are fewer pixels than the header says"
    NO_DECODER = "there is no decoder for this kind of compression"
    NOT_DECODED = "the compressed pixels cannot be decoded"
    DECODER_CRASHED = "the decoder crashed on the compressed pixels"
    DECODER_HUNG = "the decoder did not finish within its time"
    LABEL_WITHOUT_FILE = "the competition names this image, and there is no file"
    NOT_PICTURE = "this is not a PNG picture, or its header is damaged"
    OTHER_PATIENT = "the file belongs to another patient than the folder it lies in"
    OTHER_SERIES = "another series of the scan serves better"


class Unreadable(ValueError):
    """A file that cannot serve as a slice. Of `detail`, which may quote the file, only what prints is kept."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        detail = "".join(c if c.isprintable() else "?" for c in detail[:DETAIL])
        super().__init__(f"{reason}{f' ({detail})' if detail else ''}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)  # file handles, memory, disk
ROOM = 1 << 28  # bytes; more than a sound file takes


def exhausted(error: Exception) -> bool:
    """Whether the machine has run out of something, so that the file is not to blame.

    That ends the run, for else sound slices would be left out. A damaged header may ask for more memory than any
    machine has; where there is plenty, the file is to blame.
    """
    if isinstance(error, MemoryError):
        try:
            bytearray(ROOM)
        except MemoryError:
            return True
    return isinstance(error, OSError) and error.errno in EXHAUSTED

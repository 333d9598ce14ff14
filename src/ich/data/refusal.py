"""Why a file cannot be read as a slice: the closed list of reasons (docs/reference/quarantine.md)."""

import errno
from dataclasses import dataclass
from enum import StrEnum

DETAIL = 100  # characters


class Reason(StrEnum):
    """The reasons for quarantine; lower-case names are written to quarantine.csv."""

    UNREADABLE = "the file cannot be opened"
    NOT_DICOM = "this is not a DICOM file, or its header is damaged"
    NOT_CT_SLICE = "this is not a CT slice (another modality, a localizer or a screen shot)"
    NO_IDENTITY = "study or series identifier is missing"
    BAD_SIZE = "rows, columns, frames or bits are missing or impossible"
    BAD_RESCALE = "slope or intercept is not a usable number"
    NOT_HOUNSFIELD = "its values are not Hounsfield units"
    TRUNCATED = "there are fewer pixels than the header requires"
    NO_DECODER = "there is no decoder for this kind of compression"
    NOT_DECODED = "the compressed pixels cannot be decoded"
    DECODER_CRASHED = "the decoder crashed on the compressed pixels"
    DECODER_HUNG = "the decoder exceeded its time limit"
    LABEL_WITHOUT_FILE = "the competition lists this image, but there is no file"
    NOT_IMAGE = "this is not a PNG image, or its header is damaged"
    REPLACED = "another file took its place after its header was read"
    OTHER_PATIENT = "the file belongs to another patient than the folder it lies in"
    OTHER_SERIES = "another series of the scan is used"
    SAME_ID = "a frame of another file has the same image id"


class Unreadable(ValueError):
    """A file that cannot be read as a slice. Unprintable characters of `detail` are replaced."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        detail = "".join(c if c.isprintable() else "?" for c in detail[:DETAIL])
        super().__init__(f"{reason}{f' ({detail})' if detail else ''}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Quarantined:
    """A file that cannot be used, or a labelled image without a file. image_id: empty if the file's name is refused."""

    image_id: str
    split: str
    path: str
    reason: str
    detail: str


def require_same(crc: int, expected: int | None) -> None:
    """Raise Unreadable if the CRC-32 of a file is not the `expected` one."""
    if expected is not None and crc != expected:
        raise Unreadable(Reason.REPLACED)


EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)  # file handles, memory, disk
SPARE = 1 << 28  # bytes; more than an intact file needs


def exhausted(error: Exception) -> bool:
    """True if the machine, not the file, caused the error: it has run out of memory, disk or file handles.

    Such an error must end the run, or intact slices would be quarantined. A MemoryError while there is plenty of
    memory comes from a damaged header.
    """
    if isinstance(error, MemoryError):
        try:
            bytearray(SPARE)
        except MemoryError:
            return True
    return isinstance(error, OSError) and error.errno in EXHAUSTED

"""The only place that speaks DICOM: Hounsfield units and geometry out of a file, and a slice back into one.

A file is read, or it is refused with one of `Reason`; nothing is guessed in silence. The header is read and judged
before memory is taken for pixels, and pixels that cannot be there by the file's size are refused with the header.

Headers without anything unusual are read by `plain`; pydicom reads all others, and decides.
"""

from ich.data.dicom.reading import Geometry, geometry, hounsfield, hounsfields, opened
from ich.data.dicom.writing import SliceHeader, write
from ich.data.refusal import Reason, Unreadable
from ich.data.units import HU_HIGH, HU_LOW

__all__ = [
    "HU_HIGH",
    "HU_LOW",
    "Geometry",
    "Reason",
    "SliceHeader",
    "Unreadable",
    "geometry",
    "hounsfield",
    "hounsfields",
    "opened",
    "write",
]

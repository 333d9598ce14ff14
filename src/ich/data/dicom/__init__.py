"""DICOM files to Hounsfield units and geometry, and slices to DICOM files.

A file is read, or refused with one of `Reason`. The header is validated, against the file's size too, before memory
is allocated for pixels. Common headers are read by `plain`, all others by pydicom (`parsed`).
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

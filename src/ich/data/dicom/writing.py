"""Write CT slices as DICOM files."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.config import IGNORE, settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

settings.writing_validation_mode = IGNORE  # RSNA's identifiers are not valid UIDs


@dataclass(frozen=True)
class SliceHeader:
    """The header of a slice to write. Lengths in mm; `slope` and `intercept` convert stored values to HU."""

    image_id: str
    patient_id: str
    study_id: str
    series_id: str
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    window_center: tuple[float, ...]
    window_width: tuple[float, ...]
    explicit_vr: bool
    short_meta: bool = False
    """file meta information without length and version, and no SOP class: as half of the files of RSNA 2019"""


def write(path: Path, stored: np.ndarray, header: SliceHeader) -> None:
    """Write an uncompressed CT slice in the style of RSNA 2019. stored: uint16 or int16 [rows, columns]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(header.image_id)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if header.explicit_vr else ImplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.3.4")
    slice_ = Dataset()
    slice_.file_meta, slice_.preamble = meta, bytes(128)
    if header.short_meta:
        meta.ImplementationVersionName = "RSNA Challenge 2019"
    else:
        slice_.SOPClassUID = CTImageStorage
    slice_.SOPInstanceUID = header.image_id
    slice_.Modality = "CT"
    slice_.PatientID = header.patient_id
    slice_.StudyInstanceUID = header.study_id
    slice_.SeriesInstanceUID = header.series_id
    slice_.StudyID = ""
    slice_.ImagePositionPatient = [f"{v:.6f}" for v in header.position]
    slice_.ImageOrientationPatient = [f"{v:.6f}" for v in header.orientation]
    slice_.SamplesPerPixel = 1
    slice_.PhotometricInterpretation = "MONOCHROME2"
    slice_.Rows, slice_.Columns = stored.shape
    slice_.PixelSpacing = [f"{v:.6f}" for v in header.pixel_spacing]
    slice_.BitsAllocated = 16
    slice_.BitsStored = header.bits_stored
    slice_.HighBit = header.bits_stored - 1
    slice_.PixelRepresentation = int(header.signed)
    slice_.WindowCenter = [f"{v:05g}" for v in header.window_center]
    slice_.WindowWidth = [f"{v:05g}" for v in header.window_width]
    slice_.RescaleIntercept = f"{header.intercept:g}"
    slice_.RescaleSlope = f"{header.slope:g}"
    slice_.PixelData = np.ascontiguousarray(stored, dtype="<i2" if header.signed else "<u2").tobytes()
    slice_["PixelData"].VR = "OW"
    file = io.BytesIO()
    slice_.save_as(file, enforce_file_format=not header.short_meta)
    path.write_bytes(file.getvalue())  # pydicom would hide the errno of a system error

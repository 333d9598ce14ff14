"""CT files as a hospital writes them: valid UIDs, a patient and dates. For tests of DICOM results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ich.data import dicom
from tests.plain_slice import HEADER

STUDY = "1.2.3"


def write_slice(path: Path, number: int = 0, study: str = STUDY, pixels: Any = None, **elements: Any) -> Path:
    """Write slice `number` of a study. elements: by keyword; an element that is None is left out."""
    series, instance = f"{study}.1", f"{study}.1.{number + 1}"
    ids = {"image_id": instance, "study_id": study, "series_id": series}
    stored = np.zeros((8, 8), np.int16) if pixels is None else pixels
    dicom.write(path, stored, replace(HEADER, **ids, position=(0.0, 0.0, 5.0 * number)))
    header = pydicom.dcmread(path)
    patient = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19700102", "PatientSex": "F"}
    study_elements = {"StudyDate": "20260203", "StudyTime": "101112", "AccessionNumber": "A1", "StudyID": "7"}
    for keyword, value in ({**patient, **study_elements} | elements).items():
        if value is not None:
            setattr(header, keyword, value)
        elif keyword in header:
            delattr(header, keyword)
    header.save_as(path)
    return path

"""Results as DICOM objects for the archive of the scans: a structured report and images. The only user of highdicom.

Patient and study are copied from the scans, also a name. UIDs are derived from those of the scans and from the model,
and dates are those of the scans: the same scans and model give the same bytes. (DICOM PS3.16, TID 1500)
"""

import io
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from highdicom.base import SOPClass
from highdicom.sc import SCImage
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from ich.data.dicom import parsed
from ich.data.dicom.elements import identifier, integer, numbers, text
from ich.data.dicom.plain import CHARACTER_SET
from ich.data.dicom.reading import MAX_FILE, refusing
from ich.data.files import located
from ich.inputs import regular

RESEARCH = "Research use only. Not for diagnosis."
PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber", "StudyDescription")
STUDY += ("PatientAge",)
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")  # the first one that is valid is used
NO_DATE = ("19000101", "000000")  # of scans without a date; these reports must have one
SERIES_NUMBERS = {"SR": 9001, "OT": 9002}  # by modality
UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
PRIVATE = "99ICH"  # our coding scheme, for findings without a code below
FINDINGS = {
    "any": codes.SCT.IntracranialHemorrhage,
    "epidural": CodedConcept("82999001", "SCT", "Epidural intracranial hemorrhage"),
    "intraparenchymal": CodedConcept("274100004", "SCT", "Cerebral hemorrhage"),
    "subarachnoid": CodedConcept("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
    "subdural": CodedConcept("35486000", "SCT", "Subdural intracranial hemorrhage"),
}


@dataclass(frozen=True)
class Model:
    """Identity of a bundle of models. digest: a hash of its files."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Finding:
    """A class of a study: its probability, and the positive slices (path and frame, from 0).

    threshold: of the probabilities of slices; None if there is none, and so no slice is positive or negative.
    """

    name: str
    probability: float
    threshold: float | None = None
    positive: Sequence[tuple[str, int]] = ()


def valid_uid(value: str) -> bool:
    return len(value) <= 64 and UID.fullmatch(value) is not None


def derived_uid(*parts: object) -> str:
    """A UID that depends on `parts` only."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, repr(parts)).int}"


def source_uid(value: str) -> str:
    """A UID of the scans; one derived from it if it is not valid, as in RSNA 2019."""
    return value if valid_uid(value) else derived_uid("source", value)


def read_sources(root: Path, paths: Iterable[str]) -> dict[str, Dataset]:
    """What results refer to or copy from each file: identity, patient, study and date. Raises Unreadable."""
    return {path: _source(root / path) for path in paths}


def _source(path: Path) -> Dataset:
    single = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfFrames")
    times = [name.replace("Date", "Time") for name in DATES]
    read = {*single, *PATIENT, *STUDY, *DATES, *times, "ImageOrientationPatient", "BurnedInAnnotation"}
    tags = [int(tag_for_keyword(keyword) or 0) for keyword in read]
    with (
        located(path) as place,
        refusing(),
        open(place, "rb", opener=regular(MAX_FILE)) as file,
        parsed.opened(file, [*tags, CHARACTER_SET]) as (header, _),
    ):
        found = Dataset()
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(found, keyword, source_uid(identifier(header, keyword)))
        found.SOPClassUID = text(header, "SOPClassUID") or CTImageStorage  # the file was read as a CT slice
        found.NumberOfFrames = integer(header, "NumberOfFrames", 1)
        for keyword in (*PATIENT, *STUDY):
            setattr(found, keyword, text(header, keyword))
        dates = [(text(header, date), text(header, time)) for date, time in zip(DATES, times, strict=True)]
        date, time = next((pair for pair in dates if re.fullmatch(r"\d{8}", pair[0])), NO_DATE)
        found.ContentDate, found.ContentTime = date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else "000000"
        found.PatientOrientation = _orientation(numbers(header, "ImageOrientationPatient", 6))
        if text(header, "BurnedInAnnotation"):
            found.BurnedInAnnotation = text(header, "BurnedInAnnotation")
        return found


def _orientation(axes: tuple[float, ...] | None) -> list[str]:
    """PatientOrientation: the directions of rows and columns; empty if unknown."""
    if axes is None:
        return []
    letters = ("RL", "AP", "FH")
    largest = [max(range(3), key=lambda k, axis=axis: abs(axis[k])) for axis in (axes[:3], axes[3:])]
    return [letters[k][axis[k] > 0] for k, axis in zip(largest, (axes[:3], axes[3:]), strict=True)]


def structured_report(sources: Mapping[str, Dataset], findings: Sequence[Finding], slices: int, model: Model) -> bytes:
    """A Comprehensive SR of a study: probabilities, thresholds, and references to positive slices.

    sources: of all scored files of the study. slices: the number of scored slices.
    """
    first, *_ = sources.values()
    instances = sorted({source.SOPInstanceUID for source in sources.values()})
    uid = derived_uid("report", astuple(model), first.StudyInstanceUID, instances)
    algorithm = AlgorithmIdentification(
        name=_ascii(f"ich {model.name}"),
        version=model.version,
        parameters=[f"SHA-256 of the bundle: {model.digest}", RESEARCH],
    )
    device = DeviceObserverIdentifyingAttributes(
        derived_uid("device", astuple(model)), name="ich", manufacturer_name="ich"
    )
    content = MeasurementReport(
        ObservationContext(observer_device_context=ObserverContext(codes.DCM.Device, device)),
        procedure_reported=codes.SCT.ComputedTomographyOfHead,
        imaging_measurements=[_group(finding, sources, uid, algorithm) for finding in findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    note = f"{RESEARCH} {slices} slices were scored. Probabilities are of the study, thresholds are of single slices."
    comment = TextContentItem(codes.DCM.Comment, note, relationship_type=RelationshipTypeValues.CONTAINS)
    content[0].ContentSequence.append(comment)
    report = ComprehensiveSR(
        evidence=[_reference(source) for source in sources.values()],
        content=content[0],
        series_instance_uid=derived_uid("report series", uid),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="ich",
        is_complete=True,
    )
    return _written(report, first, model, f"ICH probabilities. {RESEARCH}")


def _group(
    finding: Finding, sources: Mapping[str, Dataset], uid: str, algorithm: AlgorithmIdentification
) -> MeasurementsAndQualitativeEvaluations:
    """Measurement group of a class (TID 1501)."""
    measurements = [Measurement(codes.DCM.Probability, round(finding.probability, 6), codes.UCUM.NoUnits)]
    presence: list[QualitativeEvaluation] = []
    if finding.threshold is not None:
        measurements.append(Measurement(codes.DCM.ThresholdValue, round(finding.threshold, 6), codes.UCUM.NoUnits))
        present = codes.DCM.Present if finding.positive else codes.DCM.Absent
        presence.append(QualitativeEvaluation(codes.DCM.PresenceOfProperty, present))
    frames: dict[str, list[int]] = {}
    for path, frame in finding.positive:
        frames.setdefault(path, []).append(frame + 1)
    name = _ascii(finding.name)
    return MeasurementsAndQualitativeEvaluations(
        TrackingIdentifier(derived_uid("finding", uid, name), name),
        finding_type=FINDINGS.get(name) or CodedConcept(name, PRIVATE, name[:64]),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=presence,
        source_images=[
            SourceImageForMeasurementGroup(
                sources[path].SOPClassUID,
                sources[path].SOPInstanceUID,
                numbers if sources[path].NumberOfFrames > 1 else None,
            )
            for path, numbers in frames.items()
        ],
    )


def secondary_capture(source: Dataset, frame: int, image: np.ndarray, number: int, model: Model) -> bytes:
    """An image of a slice as Secondary Capture. image: uint8 [rows, columns, 3], red, green, blue.

    frame: of the source, from 0. number: of the image in its series.
    """
    identity = (astuple(model), source.StudyInstanceUID)
    capture = SCImage(
        image,
        "RGB",
        8,
        "PATIENT",
        source.StudyInstanceUID,
        derived_uid("image series", *identity),
        SERIES_NUMBERS["OT"],
        derived_uid("image", *identity, source.SOPInstanceUID, frame),
        number,
        "ich",
        patient_orientation=("L", "P"),  # replaced by that of the slice
    )
    capture.PatientOrientation = source.PatientOrientation
    capture.ConversionType, capture.Laterality = "SYN", ""
    capture.DerivationDescription = f"Grad-CAM on the brain window. {RESEARCH}"
    del capture.DateOfSecondaryCapture, capture.TimeOfSecondaryCapture
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if source.NumberOfFrames > 1:
        reference.ReferencedFrameNumber = frame + 1
    capture.SourceImageSequence = [reference]
    return _written(capture, source, model, f"ICH heat maps. {RESEARCH}")


def _reference(source: Dataset) -> Dataset:
    """The identity of a file, with an empty patient: highdicom would refuse values that are not valid."""
    found = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(found, keyword, source[keyword].value)
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", *STUDY):
        setattr(found, keyword, None)
    return found


def _written(result: SOPClass, source: Dataset, model: Model, description: str) -> bytes:
    """The file of a result, with patient, study and date of a source, and without the time of writing."""
    for keyword in (*PATIENT, *STUDY, "BurnedInAnnotation"):
        if source.get(keyword) or keyword in result:
            setattr(result, keyword, source.get(keyword))
    result.SpecificCharacterSet = "ISO_IR 192"
    result.ContentDate, result.ContentTime = source.ContentDate, source.ContentTime
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContributingEquipmentSequence"):
        delattr(result, keyword)
    result.SeriesDescription = description
    result.ManufacturerModelName, result.SoftwareVersions = "ich", model.version
    file = io.BytesIO()
    result.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _ascii(value: str) -> str:
    return value.encode("ascii", "replace").decode()

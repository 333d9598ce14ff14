"""A plain slice's header, for tests that change what they are about with `replace`."""

from ich.data.dicom import SliceHeader

HEADER = SliceHeader(
    image_id="a",
    patient_id="p",
    study_id="s",
    series_id="r",
    position=(0.0, 0.0, 0.0),
    orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    pixel_spacing=(1.0, 1.0),
    bits_stored=16,
    signed=True,
    slope=1.0,
    intercept=0.0,
    window_center=(40.0,),
    window_width=(80.0,),
    explicit_vr=True,
)

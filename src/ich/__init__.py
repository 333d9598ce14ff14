"""Head-CT hemorrhage competitions, from DICOM slices to a submission."""

"""Intracranial hemorrhage detection on head CT, from DICOM files to a Kaggle submission."""

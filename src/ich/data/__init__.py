"""From raw files to what a network sees: formats, DICOM, the Hounsfield cache, folds, views, augmentation, loaders."""

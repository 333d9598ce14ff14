"""From raw files to network inputs: formats, DICOM, HU cache, folds, windowing, augmentation, loaders."""

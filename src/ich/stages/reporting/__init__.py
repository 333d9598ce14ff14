"""The sections of the report page, one file each, and what they read of the artefacts."""

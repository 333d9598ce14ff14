"""Intracranial hemorrhage detection on head CT, from DICOM files to a Kaggle submission."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ich.api import load_bundle

__all__ = ["load_bundle"]


def __getattr__(name: str) -> Any:
    """Import the API on first use: it loads torch."""
    if name != "load_bundle":
        raise AttributeError(f"module 'ich' has no attribute {name!r}")
    from ich.api import load_bundle

    return load_bundle

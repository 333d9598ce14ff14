"""Paths of artifacts, and how they are written."""

"""Evaluation, explanation and the report page of a trained ensemble, from plain arrays and tables."""

"""The map of the embeddings."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("embeddings", "The map of the embeddings", [Notes([evidence.plan.recipe.name])])

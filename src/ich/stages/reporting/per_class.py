"""Class by class."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("per-class", "Class by class", [Notes([evidence.plan.recipe.name])])

"""The verdict."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("verdict", "The verdict", [Notes([evidence.plan.recipe.name])])

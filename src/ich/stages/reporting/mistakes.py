"""The worst mistakes."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("mistakes", "The worst mistakes", [Notes([evidence.plan.recipe.name])])

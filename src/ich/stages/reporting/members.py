"""The members."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("members", "The members", [Notes([evidence.plan.recipe.name])])

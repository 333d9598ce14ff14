"""The study viewer."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("studies", "The study viewer", [Notes([evidence.plan.recipe.name])])

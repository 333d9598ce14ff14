"""Where this comes from."""

from ich.report.page import Notes, Section
from ich.stages.reporting.evidence import Evidence


def section(evidence: Evidence) -> Section:
    return Section("provenance", "Where this comes from", [Notes([evidence.plan.recipe.name])])

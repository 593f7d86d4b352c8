"""How people call a check, and when its result fails."""

import dagster as dg


def check_name(key: dg.AssetCheckKey) -> str:
    """Returns the name of a check, after that of its asset."""
    return f"{key.asset_key.to_user_string()}: {key.name}"


def fails(evaluation: dg.AssetCheckEvaluation) -> bool:
    """Returns whether a result is told: warnings are on the dashboards only."""
    return not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR

"""The asset checks on `crm/schema`: drift (one per guard), invariants (one per rule) and attacks (one per family).

A check that cannot run fails and gives the reason; it never passes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import psycopg

from crm_analytics.crm.proof import attacks, audit_seals, invariants
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.manifest import GUARDS
from crm_analytics.crm.schema.repairs import writer_repair
from crm_analytics.orchestration.crm.assets import NOTHING_SEALED, SCHEMA_KEY, last_published
from crm_analytics.orchestration.crm.resources import CrmDatabase

DRIFT = "manifest_drift"
WRITERS = "only_crm_rpc_can_write"
PUBLISHED_HEAD = "published_head_is_in_chain"
#: How many entries of a list the metadata shows; the count is always complete.
SHOWN = 50

#: Whether a check passed, and its metadata.
Verdict = tuple[bool, dict[str, Any]]


def guard_check(name: str) -> str:
    """Returns the name of the drift check of one of `manifest.GUARDS`."""
    return f"guard_{name}"


def invariant_check(name: str) -> str:
    """Returns the name of the check of one invariant."""
    return f"invariant_{name}"


def attack_check(family: str) -> str:
    """Returns the name of the check of one family of attacks."""
    return f"attack_{family}"


def _specs(descriptions: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(name, asset=SCHEMA_KEY, description=text) for name, text in descriptions.items()
    ]


_DRIFT_SPECS = _specs(
    {
        DRIFT: "The whole catalog equals the committed manifest; the metadata is the difference with its repairs.",
        WRITERS: "No role but crm_rpc (and superusers, whom the triggers refuse) can write a CRM table.",
        **{guard_check(name): meaning for name, meaning in GUARDS.items()},
    }
)
_INVARIANT_SPECS = _specs(
    {
        **{invariant_check(invariant.name): invariant.rule for invariant in invariants.INVARIANTS},
        PUBLISHED_HEAD: "The head of the seal chain that was last published to Dagster is still in audit_seals.",
    }
)
_ATTACK_SPECS = _specs(
    {attack_check(attack.family): attack.description for attack in attacks.ATTACKS.values()}
)


@dg.multi_asset_check(name="crm_guard_checks", specs=_DRIFT_SPECS, can_subset=True)
def crm_guard_checks(
    context: dg.AssetCheckExecutionContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> Iterator[dg.AssetCheckResult]:
    """Drift: compares the catalog with the manifest, read-only."""

    def verdicts() -> dict[str, Verdict]:
        with crm_database.connection() as connection, connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            comparison = manifest.compare(connection, config=crm_database.settings)
            writers = manifest.unexpected_writers(connection)
        passed, metadata = _drift(comparison.differences)
        return {
            DRIFT: (passed, {**metadata, "allowed_extras": list(comparison.allowed_extras[:SHOWN])}),
            WRITERS: _writers(writers),
            **{guard_check(guard): _drift(comparison.of(guard)) for guard in GUARDS},
        }

    yield from _selected(context, verdicts)


@dg.multi_asset_check(name="crm_invariant_checks", specs=_INVARIANT_SPECS, can_subset=True)
def crm_invariant_checks(
    context: dg.AssetCheckExecutionContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> Iterator[dg.AssetCheckResult]:
    """Invariants: compares the rows with the rules, in one read-only snapshot."""

    def verdicts() -> dict[str, Verdict]:
        with crm_database.connection() as connection:
            results = invariants.check(connection, expected_logins=crm_database.settings.crm_expected_logins)
            head = _published_head(context.instance, connection)
        return {**{invariant_check(name): _invariant(r) for name, r in results.items()}, PUBLISHED_HEAD: head}

    yield from _selected(context, verdicts)


@dg.multi_asset_check(name="crm_attack_checks", specs=_ATTACK_SPECS, can_subset=True)
def crm_attack_checks(
    context: dg.AssetCheckExecutionContext, crm_database: dg.ResourceParam[CrmDatabase]
) -> Iterator[dg.AssetCheckResult]:
    """Attacks: tries each of them for real, on a throwaway server."""
    wanted = {key.name for key in context.selected_asset_check_keys}

    def verdicts() -> dict[str, Verdict]:
        tried: dict[str, list[attacks.Outcome]] = {}
        names = [a.name for a in attacks.ATTACKS.values() if attack_check(a.family) in wanted]
        version = crm_database.settings.embedded_postgres_version
        for outcome in attacks.run_on_scratch_server(version, names):
            tried.setdefault(attack_check(outcome.attack.family), []).append(outcome)
        return {name: _attacks(outcomes) for name, outcomes in tried.items()}

    yield from _selected(context, verdicts)


crm_checks = [crm_guard_checks, crm_invariant_checks, crm_attack_checks]


def _selected(
    context: dg.AssetCheckExecutionContext, verdicts: Callable[[], Mapping[str, Verdict]]
) -> Iterator[dg.AssetCheckResult]:
    """Yields the results that were asked for; if they cannot be had, each of them fails with the reason."""
    names = sorted(key.name for key in context.selected_asset_check_keys)
    try:
        found = verdicts()
    except Exception as error:
        context.log.exception("the checks could not run")
        found = dict.fromkeys(names, (False, {"could_not_run": f"{type(error).__name__}: {error}"}))
    for name in names:
        passed, metadata = found[name]
        yield dg.AssetCheckResult(asset_key=SCHEMA_KEY, check_name=name, passed=passed, metadata=metadata)


def _drift(differences: Sequence[manifest.Difference]) -> Verdict:
    metadata: dict[str, Any] = {"differences": len(differences)}
    if differences:
        metadata["found"] = [difference.problem for difference in differences[:SHOWN]]
        repairs = [f"-- {difference.problem}\n{difference.repair}" for difference in differences[:SHOWN]]
        if len(differences) > SHOWN:
            repairs.append(
                f"-- and {len(differences) - SHOWN} more: crm-analytics crm guards prints all of them"
            )
        metadata["remedy"] = _sql("\n\n".join(repairs))
    return not differences, metadata


def _writers(writers: list[dict[str, Any]]) -> Verdict:
    metadata: dict[str, Any] = {"writers": len(writers)}
    if writers:
        metadata["found"] = [
            f"{w['role_name']} can {', '.join(w['privileges'])} {w['table_name']}" for w in writers[:SHOWN]
        ]
        metadata["remedy"] = _sql("\n".join(writer_repair(writer) for writer in writers))
    return not writers, metadata


def _sql(statements: str) -> dg.MarkdownMetadataValue:
    return dg.MarkdownMetadataValue(f"```sql\n{statements}\n```")


def _invariant(result: invariants.Result) -> Verdict:
    metadata: dict[str, Any] = {"rule": result.invariant.rule, "offenders": result.offenders}
    if not result.holds:
        metadata |= {"examples": list(result.examples), "remedy": result.invariant.remedy}
    return result.holds, metadata


def _published_head(instance: dg.DagsterInstance, connection: psycopg.Connection[Any]) -> Verdict:
    last = last_published(instance)
    if last is None:
        return True, {"published": "no head has been published yet"}
    head = last.head or NOTHING_SEALED
    if last.head is None or audit_seals.head_is_in_chain(connection, last.head):
        return True, {"published": head}
    remedy = (
        "audit_seals was rewritten, or the database was restored from before this seal. Compare with the earlier "
        "materializations of crm/audit_seals. After a known restore, run crm-analytics crm verify-restore, which also "
        "repeats erasures; then materialize crm/audit_seals."
    )
    return False, {"published": head, "remedy": remedy}


def _attacks(outcomes: list[attacks.Outcome]) -> Verdict:
    through = [f"{outcome.attack.name}: {outcome.detail}" for outcome in outcomes if not outcome.held]
    metadata: dict[str, Any] = {"attacks": len(outcomes), "got_through_count": len(through)}
    if through:
        metadata |= {
            "got_through": through[:SHOWN],
            "remedy": "The migrations of this release are at fault: repair the guard in a new file under sql/crm.",
        }
    return not through, metadata

"""Asset checks on `crm/schema`: one per guard (tier A), per invariant (tier C) and per family of attacks (tier D).

A check that could not run fails and says why; it never passes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from crm_analytics.crm.proof.attacks import ATTACKS, Outcome
from crm_analytics.crm.proof.invariants import INVARIANTS, Result
from crm_analytics.crm.proof.manifest import GUARDS, Comparison, Difference
from crm_analytics.crm.proof.repairs import writer_repair
from crm_analytics.orchestration.crm.assets import SCHEMA_KEY, SEALS_KEY
from crm_analytics.orchestration.crm.resources import CrmGuards

DRIFT = "manifest_drift"
WRITERS = "only_crm_rpc_can_write"
PUBLISHED_HEAD = "published_head_is_in_chain"
SHOWN = 50  # entries of a list in metadata; the count is always complete


def guard_check(name: str) -> str:
    """Name of the tier A check of one of `manifest.GUARDS`."""
    return f"guard_{name}"


def invariant_check(name: str) -> str:
    """Name of the tier C check of one invariant."""
    return f"invariant_{name}"


def attack_check(family: str) -> str:
    """Name of the tier D check of one family of attacks."""
    return f"attack_{family}"


def _spec(name: str, tier: str, description: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=SCHEMA_KEY, description=description, metadata={"tier": tier})


_A_SPECS = [
    _spec(
        DRIFT,
        "A",
        "The whole catalog equals the committed manifest; the metadata is the diff with its repairs.",
    ),
    _spec(
        WRITERS, "A", "No role but crm_rpc (and superusers, whom the triggers refuse) can write a CRM table."
    ),
    *(_spec(guard_check(name), "A", meaning) for name, meaning in GUARDS.items()),
]
_C_SPECS = [
    *(_spec(invariant_check(i.name), "C", i.rule) for i in INVARIANTS),
    _spec(
        PUBLISHED_HEAD, "C", "The head of the seal chain last published to Dagster is still in audit_seals."
    ),
]
_D_SPECS = [
    _spec(
        attack_check(family),
        "D",
        " ".join(a.description for a in ATTACKS.values() if a.family == family)[:500],
    )
    for family in dict.fromkeys(a.family for a in ATTACKS.values())
]


@dg.multi_asset_check(name="crm_guard_checks", specs=_A_SPECS, can_subset=True)
def crm_guard_checks(
    context: dg.AssetCheckExecutionContext, crm_guards: dg.ResourceParam[CrmGuards]
) -> Iterator[dg.AssetCheckResult]:
    """Tier A: the catalog against the manifest, read-only."""

    def results() -> Mapping[str, dg.AssetCheckResult]:
        comparison, writers = crm_guards.comparison()
        return {
            DRIFT: _drift(DRIFT, comparison.differences, comparison),
            WRITERS: _writers(writers),
            **{guard_check(guard): _drift(guard_check(guard), comparison.of(guard)) for guard in GUARDS},
        }

    yield from _selected(context, results)


@dg.multi_asset_check(name="crm_invariant_checks", specs=_C_SPECS, can_subset=True)
def crm_invariant_checks(
    context: dg.AssetCheckExecutionContext, crm_guards: dg.ResourceParam[CrmGuards]
) -> Iterator[dg.AssetCheckResult]:
    """Tier C: the rows against the rules, in one read-only snapshot."""

    def results() -> Mapping[str, dg.AssetCheckResult]:
        found = {
            invariant_check(name): _invariant(result) for name, result in crm_guards.invariants().items()
        }
        return {**found, PUBLISHED_HEAD: _published_head(context.instance, crm_guards)}

    yield from _selected(context, results)


@dg.multi_asset_check(name="crm_attack_checks", specs=_D_SPECS, can_subset=True)
def crm_attack_checks(
    context: dg.AssetCheckExecutionContext, crm_guards: dg.ResourceParam[CrmGuards]
) -> Iterator[dg.AssetCheckResult]:
    """Tier D: every attack for real, on a throwaway server."""
    wanted = {key.name for key in context.selected_asset_check_keys}

    def results() -> Mapping[str, dg.AssetCheckResult]:
        outcomes = crm_guards.attacks([a.name for a in ATTACKS.values() if attack_check(a.family) in wanted])
        families = {outcome.attack.family for outcome in outcomes}
        return {
            attack_check(family): _outcome(family, [o for o in outcomes if o.attack.family == family])
            for family in families
        }

    yield from _selected(context, results)


crm_checks = [crm_guard_checks, crm_invariant_checks, crm_attack_checks]


def _selected(
    context: dg.AssetCheckExecutionContext, results: Callable[[], Mapping[str, dg.AssetCheckResult]]
) -> Iterator[dg.AssetCheckResult]:
    """The results that were asked for; when they cannot be had, every one of them fails with the reason."""
    names = sorted(key.name for key in context.selected_asset_check_keys)
    try:
        found = results()
    except Exception as error:
        context.log.exception("the checks could not run")
        reason = f"{type(error).__name__}: {error}"
        found = {name: _result(name, False, {"could_not_run": reason}) for name in names}
    for name in names:
        yield found[name]


def _result(name: str, passed: bool, metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=SCHEMA_KEY,
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=dict(metadata),
    )


def _drift(
    name: str, differences: tuple[Difference, ...], comparison: Comparison | None = None
) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"differences": len(differences)}
    if differences:
        metadata["found"] = [difference.problem for difference in differences[:SHOWN]]
        repairs = "\n\n".join(f"-- {d.problem}\n{d.repair}" for d in differences[:SHOWN])
        if len(differences) > SHOWN:
            repairs += (
                f"\n\n-- and {len(differences) - SHOWN} more: crm-analytics crm guards prints all of them"
            )
        metadata["remedy"] = dg.MarkdownMetadataValue(f"```sql\n{repairs}\n```")
    if comparison is not None:
        metadata["tolerated"] = list(comparison.tolerated[:SHOWN])
    return _result(name, not differences, metadata)


def _writers(writers: list[dict[str, Any]]) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"writers": len(writers)}
    if writers:
        metadata["found"] = [
            f"{w['role_name']} can {', '.join(w['privileges'])} {w['table_name']}" for w in writers[:SHOWN]
        ]
        repairs = "\n".join(writer_repair(writer) for writer in writers)
        metadata["remedy"] = dg.MarkdownMetadataValue(f"```sql\n{repairs}\n```")
    return _result(WRITERS, not writers, metadata)


def _invariant(result: Result) -> dg.AssetCheckResult:
    metadata: dict[str, Any] = {"rule": result.invariant.rule, "offenders": result.offenders}
    if not result.holds:
        metadata |= {"examples": list(result.examples), "remedy": result.invariant.remedy}
    return _result(invariant_check(result.invariant.name), result.holds, metadata)


def _published_head(instance: dg.DagsterInstance, guards: CrmGuards) -> dg.AssetCheckResult:
    event = instance.get_latest_materialization_event(SEALS_KEY)
    if event is None or event.asset_materialization is None:
        return _result(PUBLISHED_HEAD, True, {"published": "no head has been published yet"})
    head = str(event.asset_materialization.metadata["head"].value)
    nothing = head == "nothing sealed yet"
    if nothing or guards.head_is_in_chain(head):
        return _result(PUBLISHED_HEAD, True, {"published": head})
    return _result(
        PUBLISHED_HEAD,
        False,
        {
            "published": head,
            "remedy": (
                "audit_seals was rewritten, or the database was restored from before this seal. Compare with the "
                "earlier materializations of crm/audit_seals; after a known restore, materialize crm/audit_seals."
            ),
        },
    )


def _outcome(family: str, outcomes: list[Outcome]) -> dg.AssetCheckResult:
    through = [f"{outcome.attack.name}: {outcome.detail}" for outcome in outcomes if not outcome.held]
    metadata: dict[str, Any] = {"attacks": len(outcomes), "got_through_count": len(through)}
    if through:
        metadata |= {
            "got_through": through[:SHOWN],
            "remedy": "The migrations in this release are at fault: mend the guard in a new file under sql/crm.",
        }
    return _result(attack_check(family), not through, metadata)

"""Prints the state of the platform, and what needs a person."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import click

from crm_analytics.cli.databases import require_analytics, require_storage
from crm_analytics.core.database import connect
from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted, listed
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration.instance import open_instance
from crm_analytics.orchestration.status import Status, status

WIDTH = 16  #: characters of a line's heading
SHOWN = 5  #: entries named on one line


def print_status(config: Settings, *, as_json: bool) -> bool:
    """Prints the status; returns whether nothing needs a person."""
    require_storage(config)
    require_analytics(config)
    with connect("analytics", config, autocommit=True) as connection, open_instance(config) as instance:
        found = status(config, connection, instance, build_defs(config))
    if as_json:
        click.echo(json.dumps(to_json(found), indent=2, ensure_ascii=False))
    else:
        for line in to_lines(found, config.timezone):
            click.echo(line)
    return not found.to_do


def to_json(found: Status) -> dict[str, Any]:
    """Returns the status for programs; times are in UTC, as ISO 8601."""
    return {
        "at": _moment(found.at),
        "needs_a_person": bool(found.to_do),
        "to_do": found.to_do,
        "daemon_runs": found.daemon_runs,
        "last_refresh": found.last_refresh and _moment(found.last_refresh),
        "stale_months": [
            {"month": f"{stale.month:%Y-%m}", "since": _moment(stale.since), "causes": stale.causes}
            for stale in found.stale_months
        ],
        "files_not_loaded": [{"path": path, "message": message} for path, message in found.not_loaded],
        "files_waiting": [{"path": file.path, "since": _moment(file.since)} for file in found.waiting],
        "quarantine": found.quarantine,
        "freshness": [
            {
                "source": source.source,
                "state": source.age.value,
                "newest": source.newest and source.newest.isoformat(),
                "days": source.days,
                "warn_days": source.expectation.warn_days,
                "error_days": source.expectation.error_days,
            }
            for source in found.freshness
        ],
        "waiting_runs": [{"run_id": run.run_id, "job": run.job} for run in found.waiting_runs],
        "dead_runs": [{"run_id": run.run_id, "job": run.job} for run in found.dead_runs],
        "failed_runs": [
            {"run_id": run.run_id, "job": run.job, "reason": run.reason, "is_repeated": run.is_repeated}
            for run in found.failed_runs
        ],
        "failing_sensors_and_schedules": {ticks.name: ticks.reason for ticks in found.failing_ticks},
        "failing_checks": found.failing_checks,
        "checks_not_run": found.checks_not_run,
        "alerts": [
            {"at": _moment(alert.at), "title": alert.title, "outcome": alert.outcome}
            for alert in found.alerts
        ],
    }


def to_lines(found: Status, timezone: ZoneInfo) -> list[str]:
    """Returns the status for people: a line for each part of the platform, then what needs somebody."""
    refresh = found.last_refresh
    parts = {
        "last refresh": f"{_local(refresh, timezone)}, {_ago(found.at - refresh)}" if refresh else "never",
        "stale months": listed(
            [f"{stale.month:%Y-%m} ({stale.causes})" for stale in found.stale_months], SHOWN
        ),
        "not loaded": listed([path for path, _ in found.not_loaded], SHOWN),
        "waiting": listed([f"{file.path}, {_ago(found.at - file.since)}" for file in found.waiting], SHOWN),
        "quarantine": listed(
            [f"{source} {records:,}" for source, records in found.quarantine.items()], SHOWN
        ),
        "waiting runs": listed([f"{run.run_id} ({run.job})" for run in found.waiting_runs], SHOWN),
        "dead runs": listed([f"{run.run_id} ({run.job})" for run in found.dead_runs], SHOWN),
        "failed runs": listed([f"{run.run_id} ({run.job})" for run in found.failed_runs], SHOWN),
        "failing ticks": listed([ticks.name for ticks in found.failing_ticks], SHOWN),
        "failing checks": listed(list(found.failing_checks), SHOWN),
        "checks not run": listed(found.checks_not_run, SHOWN),
        "daemon": "runs"
        if found.daemon_runs
        else "does not run: files and months wait for crm-analytics refresh or up",
    }
    lines = [f"{name:{WIDTH}} {told or 'none'}" for name, told in parts.items()]
    lines += ["", "newest rows"]
    lines += [
        f"  {s.source:{WIDTH - 2}} {_day(s.newest)}  {s.age.value}{_age(s.days)}" for s in found.freshness
    ]
    if found.alerts:
        lines += ["", "alerts, the newest first"]
        lines += [
            f"  {_local(alert.at, timezone)}  {alert.title} ({alert.outcome})" for alert in found.alerts
        ]
    lines += ["", "needs a person" if found.to_do else "nothing needs a person"]
    # reasons may have several lines
    lines += ["- " + "\n  ".join(text.splitlines()) for text in found.to_do]
    return lines


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _local(at: datetime, timezone: ZoneInfo) -> str:
    return f"{at.astimezone(timezone):%Y-%m-%d %H:%M}"


def _day(day: date | None) -> str:
    return f"{'–' if day is None else day.isoformat():10}"


def _age(days: int | None) -> str:
    return "" if days is None else f", {counted(days, 'day')} old"


def _ago(age: timedelta) -> str:
    """Returns how long ago something was, in the largest unit that fits."""
    seconds = max(int(age.total_seconds()), 0)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            return f"{counted(seconds // size, unit)} ago"
    return "just now"

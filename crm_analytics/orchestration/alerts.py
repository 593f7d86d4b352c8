"""Posts alerts to a webhook: failed runs, failed error-level checks and refused files, once each.

The cursor's place in the events moves only when everything up to it is settled. Until then the cursor names the
alerts that were sent, so that none is sent twice. A webhook that is down loses nothing: a tick that gets nothing
through fails visibly, and the next one tries again. An alert that the webhook refuses while it accepts others is
set aside, so that it does not hold up the rest.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase
from crm_analytics.orchestration.failures import run_failure
from crm_analytics.orchestration.retries import outlook

MOST_AT_ONCE = 20  #: alerts per message; Slack accepts 50 blocks
LONGEST_TEXT = 2800  #: characters per block; Slack accepts 3000
TIMEOUT = 10  #: seconds
#: Seconds. Dagster ends a tick after 60, and would not remember what that tick had sent.
LONGEST_TICK = 30
#: Statuses that refuse this message; others are about the address or the server.
CONTENT_REFUSED = (400, 413, 422)


@dataclass(frozen=True)
class Alert:
    """One thing to look at; `key` is the same at every tick, `run_id` becomes a link."""

    key: str
    title: str
    detail: str
    run_id: str | None = None


class WebhookError(Exception):
    """The webhook did not accept a message. The text names the host only: the rest of the address is a secret."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        #: of the answer; None if there was none
        self.status = status


def message(alerts: Sequence[Alert], dagster_url: str) -> dict[str, Any]:
    """Returns the message that Slack's incoming webhooks accept; `text` is for readers that do not know blocks."""
    blocks = []
    for alert in alerts:
        text = f"*{_escaped(alert.title)}*\n{_escaped(alert.detail)}"[:LONGEST_TEXT]
        if alert.run_id:
            text += f"\n<{dagster_url.rstrip('/')}/runs/{alert.run_id}|Open the run in Dagster>"
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": text}})
    return {
        "text": "crm-analytics: " + "; ".join(_escaped(alert.title) for alert in alerts),
        "blocks": blocks,
    }


def post(url: str, payload: Mapping[str, Any]) -> None:
    """Posts `payload` as JSON.

    Raises:
        WebhookError: unless the webhook answers with a 2xx status within 10 seconds.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise WebhookError("ALERT_WEBHOOK_URL is not an http(s) address")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):  # noqa: S310
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "code", None) or getattr(error, "reason", None) or type(error).__name__
        raise WebhookError(
            f"the webhook at {urlsplit(url).hostname} did not accept the message: {reason}",
            getattr(error, "code", None),
        ) from None


@dataclass
class Delivery:
    """What became of the alerts of one tick; `error` is the last one that occurred."""

    sent: list[str] = field(default_factory=list)
    set_aside: list[Alert] = field(default_factory=list)
    error: WebhookError | None = None


def deliver(url: str, found: Sequence[Alert], dagster_url: str) -> Delivery:
    """Posts the alerts in messages of MOST_AT_ONCE, and those of a refused message one by one.

    An alert whose content is refused is set aside only if the webhook accepted another one meanwhile: a webhook
    that refuses everything is a wrong address, and then nothing may get lost.
    """
    done = Delivery()
    refused: list[Alert] = []
    started = time.monotonic()
    waiting = [list(found[start : start + MOST_AT_ONCE]) for start in range(0, len(found), MOST_AT_ONCE)]
    while waiting and time.monotonic() - started < LONGEST_TICK:
        batch = waiting.pop(0)
        try:
            post(url, message(batch, dagster_url))
            done.sent += [alert.key for alert in batch]
        except WebhookError as error:
            done.error = error
            if error.status not in CONTENT_REFUSED:
                break
            if len(batch) > 1:
                waiting[:0] = [[alert] for alert in batch]
            else:
                refused += batch
    if done.sent:
        done.set_aside = refused
    return done


@dg.sensor(
    name="alerts",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Posts failed runs, failed error-level checks and refused files to ALERT_WEBHOOK_URL, once each. "
    "A check alerts when it begins to fail, and again only after it has passed.",
)
def alerts(
    context: dg.SensorEvaluationContext,
    analytics: dg.ResourceParam[AnalyticsDatabase],
    settings: dg.ResourceParam[Settings],
) -> dg.SkipReason:
    """Collects what happened since the cursor and posts what is not settled; without a URL, collects and keeps nothing."""
    if not settings.alert_webhook_url:
        if context.cursor:
            # alerts that are switched on again begin with that day, not with old failures
            context.update_cursor("")
        return dg.SkipReason("ALERT_WEBHOOK_URL is not set: no alerts")
    newest = context.instance.event_log_storage.get_maximum_record_id() or 0
    begin: dict[str, Any] = {"event": newest, "failing": [], "refused": [], "settled": []}
    cursor = begin | json.loads(context.cursor or "{}")
    checks, failing = _failed_checks(context.instance, cursor["event"], newest, set(cursor["failing"]))
    files, refused = _refused_files(analytics, set(cursor["refused"]))
    found = [*_failed_runs(context.instance, cursor["event"], newest), *checks, *files]
    found = [alert for alert in found if alert.key not in cursor["settled"]]
    done = deliver(settings.alert_webhook_url, found, settings.dagster_url)
    for alert in done.set_aside:
        context.log.error(
            f"the webhook refuses this alert, it is not sent again: {alert.title}: {alert.detail}"
        )
    settled = [*done.sent, *(alert.key for alert in done.set_aside)]
    left = len(found) - len(settled)
    if left and not settled:
        raise done.error or WebhookError("no time was left to send anything")
    if left:
        cursor["settled"] += settled
    else:
        cursor = {"event": newest, "failing": sorted(failing), "refused": sorted(refused), "settled": []}
    context.update_cursor(json.dumps(cursor))
    counts = {"sent": len(done.sent), "refused by the webhook": len(done.set_aside), "waiting": left}
    told = ", ".join(f"{counted(count, 'alert')} {what}" for what, count in counts.items() if count)
    return dg.SkipReason(f"{told}: {done.error}" if done.error else told or "nothing to report")


def _failed_runs(instance: dg.DagsterInstance, after: int, until: int) -> Iterator[Alert]:
    records = instance.fetch_run_status_changes(
        dg.RunStatusChangeRecordsFilter(
            event_type=dg.DagsterEventType.RUN_FAILURE, after_storage_id=after, before_storage_id=until + 1
        ),
        limit=1000,
        ascending=True,
    ).records
    for record in records:
        run = instance.get_run_by_id(record.run_id)
        failure = run_failure(instance, record.run_id)
        next_step = outlook(run, failure) if run else ""
        months = " to ".join(
            run.tags[tag]
            for tag in ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
            if run and tag in run.tags
        )
        yield Alert(
            f"run {record.run_id}",
            f"Run failed: {run.job_name if run else record.run_id}" + (f", {months}" if months else ""),
            f"{failure.reason}\n{next_step}".strip(),
            record.run_id,
        )


def _failed_checks(
    instance: dg.DagsterInstance, after: int, until: int, failing: set[str]
) -> tuple[list[Alert], set[str]]:
    """Returns alerts for checks of severity ERROR that began to fail, and the names of all that fail now."""
    found = []
    for record in instance.get_event_records(
        dg.EventRecordsFilter(
            event_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, after_cursor=after, before_cursor=until + 1
        ),
        ascending=True,
    ):
        event = record.event_log_entry.dagster_event
        if event is None:
            continue
        evaluation = event.asset_check_evaluation_data
        name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
        if evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
            failing.discard(name)
        elif name not in failing:
            failing.add(name)
            found.append(
                Alert(
                    f"check {record.storage_id}",
                    f"Check failed: {name}",
                    evaluation.description or "see the run",
                    record.run_id,
                )
            )
    return found, failing


def _refused_files(analytics: AnalyticsDatabase, known: set[int]) -> tuple[list[Alert], set[int]]:
    """Returns alerts for newly refused files, and the ledger ids of all files whose current content is refused."""
    with analytics.connect() as connection:
        refused = connection.execute(
            "SELECT file_id, path, message, run_id FROM reporting.files"
            " WHERE is_current AND status = 'refused' ORDER BY file_id"
        ).fetchall()
    return (
        [
            Alert(f"file {file_id}", f"File refused: {path}", text, run_id)
            for file_id, path, text, run_id in refused
            if file_id not in known
        ],
        {file_id for file_id, *_ in refused},
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


alert_sensors = [alerts]

"""Posts alerts to a webhook, once each: what fails, and that it works again.

The cursor has the place in the events, what is failing, and the alerts that are still to be sent. A tick that gets
nothing through fails visibly, its cursor is not kept, and the next one finds the same again, except sensors, schedules
and files that were well again meanwhile. Dagster keeps the cursor when the tick ends, so an alert comes twice if the
process dies between its sending and that. An alert that the webhook refuses while it accepts others is set aside, so
that it does not hold up the rest. What was sent when is on the page of the asset operation/alerts: in Dagster's
database, because alerts must not need the databases that they are about.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import psycopg

from crm_analytics.core.settings import Settings
from crm_analytics.core.wording import counted
from crm_analytics.orchestration.analytics.checks import windowed_checks
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase
from crm_analytics.orchestration.asset_metadata import OWNERS
from crm_analytics.orchestration.check_results import check_name, fails
from crm_analytics.orchestration.failing_ticks import FAILURES, automation_names, newest_ticks
from crm_analytics.orchestration.failures import run_failure
from crm_analytics.orchestration.retries import attempt_of, outlook

MOST_AT_ONCE = 20  #: alerts per message; Slack accepts 50 blocks
LONGEST_TEXT = 2800  #: characters per block; Slack accepts 3000
TIMEOUT = 10  #: seconds
#: Seconds. Dagster ends a tick after 60, and would not remember what that tick had sent.
LONGEST_TICK = 30
#: Statuses that refuse this message; others are about the address or the server.
CONTENT_REFUSED = (400, 413, 422)
#: Events read at once; Dagster returns 1000 at most.
PAGE = 1000

#: Of the only business, or of what belongs to no franchise.
ALERTS_KEY = dg.AssetKey(["operation", "alerts"])


def alerts_sent(franchise: Franchise) -> dg.AssetSpec:
    """Describes the asset whose page tells what was sent."""
    return dg.AssetSpec(
        franchise.key(ALERTS_KEY),
        description="What was sent to ALERT_WEBHOOK_URL, and when: one observation for each alert. An alert that the"
        " webhook refused is here, too, and says so.",
        group_name=franchise.name("operation"),
        owners=OWNERS,
        kinds={"webhook"},
    )


@dataclass(frozen=True)
class Alert:
    """One thing to look at; `run_id` becomes a link."""

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

    A redirect is not followed: urllib would repeat the POST as a GET, whose 200 says nothing about the message.

    Raises:
        WebhookError: unless the webhook answers with a 2xx status within 10 seconds.
    """
    host = "ALERT_WEBHOOK_URL"
    try:
        host = str(urlsplit(url).hostname)
        request = urllib.request.Request(  # noqa: S310 - the opener knows no scheme but http(s)
            url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
        )
        with _opener().open(request, timeout=TIMEOUT):
            pass
    except urllib.error.HTTPError as error:
        raise _not_accepted(host, str(error.code), error.code) from None
    except urllib.error.URLError as error:
        raise _not_accepted(host, str(error.reason)) from None
    except (OSError, ValueError, HTTPException) as error:
        # the text of some quotes the address
        raise _not_accepted(host, type(error).__name__) from None


def _not_accepted(host: str, reason: str, status: int | None = None) -> WebhookError:
    return WebhookError(f"the webhook at {host} did not accept the message: {reason}", status)


def _opener() -> urllib.request.OpenerDirector:
    """Returns an opener of http(s) addresses that follows no redirect and turns every status but 2xx into an HTTPError."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


@dataclass
class Delivery:
    """What became of the alerts of one tick; `error` is the last one that occurred."""

    sent: list[Alert] = field(default_factory=list)
    set_aside: list[Alert] = field(default_factory=list)
    left: list[Alert] = field(default_factory=list)
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
            done.sent += batch
        except WebhookError as error:
            done.error = error
            if error.status not in CONTENT_REFUSED:
                waiting.insert(0, batch)
                break
            if len(batch) > 1:
                waiting[:0] = [[alert] for alert in batch]
            else:
                refused += batch
    done.left = [alert for batch in waiting for alert in batch]
    if done.sent:
        done.set_aside = refused
    else:
        done.left = [*refused, *done.left]
    return done


def alert_sensor(franchise: Franchise) -> dg.SensorDefinition:
    """Returns the sensor that tells of one franchise, so that each thing is told once, whatever code locations there are.

    That of the common settings tells of what belongs to no franchise.
    """
    whose = f" of {franchise.settings.franchise}" if franchise.settings.franchise else ""

    @dg.sensor(
        name=franchise.name("alerts"),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={"settings"} if franchise.is_common else franchise.resource_keys,
        description=f"Posts to ALERT_WEBHOOK_URL, once each{whose}: failed runs, failed error-level checks, files that are"
        f" not loaded, and sensors and schedules that fail {FAILURES} ticks in a row; and that they work again.",
    )
    def evaluate(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        """Collects what happened since the cursor and posts what is to be sent."""
        if franchise.is_common:
            return _tick(context, franchise, None, context.resources.settings)
        analytics = franchise.analytics(context)
        return _tick(context, franchise, analytics, analytics.settings)

    return evaluate


def _tick(
    context: dg.SensorEvaluationContext,
    franchise: Franchise,
    analytics: AnalyticsDatabase | None,
    settings: Settings,
) -> dg.SkipReason:
    """Collects what happened since the cursor and posts what is to be sent; without a URL, collects and keeps nothing."""
    if not settings.alert_webhook_url:
        if context.cursor:
            # alerts that are switched on again begin with that day, not with old failures
            context.update_cursor("")
        return dg.SkipReason("ALERT_WEBHOOK_URL is not set: no alerts")
    instance = context.instance
    newest = instance.event_log_storage.get_maximum_record_id() or 0
    begin: dict[str, Any] = {"event": newest, "failing": [], "ticks": [], "files": [], "waiting": []}
    cursor = begin | json.loads(context.cursor or "{}")
    checks, failing = _changed_checks(instance, franchise, cursor["event"], newest, set(cursor["failing"]))
    ticks, failing_now = _changed_ticks(context, franchise, set(cursor["ticks"]))
    try:
        files, not_loaded = _files_not_loaded(analytics, set(cursor["files"])) if analytics else ([], set())
    except (psycopg.Error, dg.Failure) as error:
        # the other alerts may be about this very database
        context.log.warning(f"files that are not loaded are not known until the next tick: {error}")
        files, not_loaded = [], set(cursor["files"])
    found = [
        *(Alert(**alert) for alert in cursor["waiting"]),
        *_failed_runs(instance, franchise, cursor["event"], newest),
        *_recovered_runs(instance, franchise, cursor["event"], newest),
        *checks,
        *ticks,
        *files,
    ]
    done = deliver(settings.alert_webhook_url, found, settings.dagster_url)
    if done.left and not done.sent:
        raise done.error or WebhookError("no time was left to send anything")
    cursor = {
        "event": newest,
        "failing": sorted(failing),
        "ticks": sorted(failing_now),
        "files": sorted(not_loaded),
        "waiting": [asdict(alert) for alert in done.left],
    }
    context.update_cursor(json.dumps(cursor))
    for alert in done.set_aside:
        context.log.error(
            f"the webhook refuses this alert, it is not sent again: {alert.title}: {alert.detail}"
        )
    try:
        _record(instance, franchise, done)
    except Exception as error:
        # a tick that fails would send again what is sent
        context.log.error(
            f"not written down on the page of {franchise.key(ALERTS_KEY).to_user_string()}: {error}"
        )
    counts = {
        "sent": len(done.sent),
        "refused by the webhook": len(done.set_aside),
        "waiting": len(done.left),
    }
    told = ", ".join(f"{counted(count, 'alert')} {what}" for what, count in counts.items() if count)
    return dg.SkipReason(f"{told}: {done.error}" if done.error else told or "nothing to report")


def _record(instance: dg.DagsterInstance, franchise: Franchise, done: Delivery) -> None:
    """Writes down what was sent, and what the webhook refused."""
    outcomes = {"sent": done.sent, "refused by the webhook": done.set_aside}
    for outcome, told in outcomes.items():
        for alert in told:
            run = {"run": dg.MetadataValue.dagster_run(alert.run_id)} if alert.run_id else {}
            instance.report_runless_asset_event(
                dg.AssetObservation(
                    franchise.key(ALERTS_KEY),
                    description=alert.title,
                    metadata={
                        "alert": alert.title,
                        "detail": alert.detail[:LONGEST_TEXT],
                        "outcome": outcome,
                        **run,
                    },
                )
            )


def _failed_runs(
    instance: dg.DagsterInstance, franchise: Franchise, after: int, until: int
) -> Iterator[Alert]:
    for record in _ended_runs(instance, dg.DagsterEventType.RUN_FAILURE, after, until):
        run = instance.get_run_by_id(record.run_id)
        if run and not franchise.has_run(run):
            continue
        failure = run_failure(instance, record.run_id)
        next_step = outlook(run, failure) if run else ""
        what = "Run died" if failure.worker_gone else "Run failed"
        yield Alert(
            f"{what}: {_run_name(run) if run else record.run_id}",
            f"{failure.reason}\n{next_step}".strip(),
            record.run_id,
        )


def _recovered_runs(
    instance: dg.DagsterInstance, franchise: Franchise, after: int, until: int
) -> Iterator[Alert]:
    """Yields an alert for each piece of work that succeeded after its earlier attempts had failed, which was told."""
    for record in _ended_runs(instance, dg.DagsterEventType.RUN_SUCCESS, after, until):
        run = instance.get_run_by_id(record.run_id)
        attempt = attempt_of(run) if run else None
        if run and franchise.has_run(run) and attempt is not None and attempt > 1:
            detail = f"Attempt {attempt} succeeded: what failed before is done."
            yield Alert(f"Run recovered: {_run_name(run)}", detail, run.run_id)


def _ended_runs(
    instance: dg.DagsterInstance, how: dg.DagsterEventType, after: int, until: int
) -> Iterator[dg.EventLogRecord]:
    """Yields the events (after, until] by which runs ended, the oldest first."""
    wanted = dg.RunStatusChangeRecordsFilter(
        event_type=how,  # type: ignore[arg-type]
        after_storage_id=after,
        before_storage_id=until + 1,
    )
    cursor, has_more = None, True
    while has_more:
        page = instance.fetch_run_status_changes(wanted, limit=PAGE, cursor=cursor, ascending=True)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def _run_name(run: dg.DagsterRun) -> str:
    """Returns the run's job and its months."""
    tags = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    months = " to ".join(run.tags[tag] for tag in tags if tag in run.tags)
    return f"{run.job_name}, {months}" if months else run.job_name


def _changed_checks(
    instance: dg.DagsterInstance, franchise: Franchise, after: int, until: int, failing: set[str]
) -> tuple[list[Alert], set[str]]:
    """Returns alerts for checks of severity ERROR that began to fail or to pass, and the names of all that fail now.

    A check that covers its run's months passes when other months are right, so nothing is said of that.
    """
    windowed = {check_name(key) for key in windowed_checks(franchise)}
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
        if not franchise.has_key(evaluation.asset_check_key.asset_key):
            continue
        name = check_name(evaluation.asset_check_key)
        if fails(evaluation) and name not in failing:
            failing.add(name)
            detail = evaluation.description or "see the run"
            found.append(Alert(f"Check failed: {name}", detail, record.run_id))
        elif name in failing and not fails(evaluation):
            failing.remove(name)
            if name not in windowed:
                detail = evaluation.description or "It passes."
                found.append(Alert(f"Check recovered: {name}", detail, record.run_id))
    return found, failing


def _changed_ticks(
    context: dg.SensorEvaluationContext, franchise: Franchise, failing: set[str]
) -> tuple[list[Alert], set[str]]:
    """Returns alerts for sensors and schedules that began to fail or to work again, and the names of all that fail now.

    Not for this sensor: while it fails, it tells nothing.
    """
    every = automation_names(context.repository_def) - {franchise.name("alerts")}
    names = {name for name in every if franchise.has_name(name)}
    ticks = newest_ticks(context.instance, names)
    begun = {found.name: found for found in ticks if found.fails and found.name not in failing}
    # what is off, or gone, fails no longer, and that is no news
    works = {found.name for found in ticks if found.works} & failing
    off = failing - {found.name for found in ticks}
    found = [
        Alert(f"{last.kind} fails: {name}", f"{FAILURES} ticks in a row, the last one: {last.reason}")
        for name, last in begun.items()
    ]
    found += [Alert(f"Works again: {name}", "Its newest tick did not fail.") for name in sorted(works)]
    return found, (failing | set(begun)) - works - off


def _files_not_loaded(analytics: AnalyticsDatabase, known: set[int]) -> tuple[list[Alert], set[int]]:
    """Returns alerts for files that are newly refused or unrecognized, and the ledger ids of all that are so now."""
    with analytics.connect() as connection:
        found = connection.execute(
            "SELECT file_id, path, message, run_id FROM reporting.files"
            " WHERE is_current AND status IN ('refused', 'unrecognized') ORDER BY file_id"
        ).fetchall()
    return (
        [
            Alert(f"File not loaded: {path}", text, run_id)
            for file_id, path, text, run_id in found
            if file_id not in known
        ],
        {file_id for file_id, *_ in found},
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

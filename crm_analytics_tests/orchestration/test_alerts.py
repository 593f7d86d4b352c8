"""The alert sensor against a real instance, a real database and a local webhook."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from crm_analytics.core.settings import Settings
from crm_analytics.orchestration.alerts import (
    ALERTS_KEY,
    LONGEST_TEXT,
    Alert,
    WebhookError,
    alert_sensor,
    message,
    post,
)
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.instance import open_instance
from crm_analytics.orchestration.retries import GOES_ON, RUN_KEY_TAG, WORK_TAG
from crm_analytics_tests.orchestration.webhook import Webhook


@pytest.fixture
def tick(
    analytics_url: str, new_database: Callable[..., str], tmp_path: Path, webhook: Webhook
) -> Iterator[Callable[..., dg.SensorExecutionData]]:
    """Evaluates the sensor once, with the cursor of the previous time and, if given, other settings."""
    settings = Settings(
        analytics_database_url=analytics_url,
        dagster_postgres_url=new_database("dagster"),
        crm_analytics_home=tmp_path / "state",
        alert_webhook_url=webhook.url,
        dagster_url="https://dagster.example.com/",
    )
    cursor: str | None = None
    with open_instance(settings) as instance:

        def evaluate(**changes: object) -> Any:
            nonlocal cursor
            changed = settings.model_copy(update=changes)
            franchise = Franchise(changed)
            with dg.build_sensor_context(
                instance=instance, cursor=cursor, resources=franchise.resources
            ) as context:
                data = alert_sensor(franchise).evaluate_tick(context)
            cursor = data.cursor
            return data

        evaluate.instance = instance  # type: ignore[attr-defined]
        yield evaluate


def _run(instance: dg.DagsterInstance, *, fail: bool = False, passed: bool = True, error: bool = True) -> str:
    """Materializes an asset with one check; returns the run's id."""

    @dg.asset
    def table() -> None:
        if fail:
            raise ValueError("disk <full> & slow")

    @dg.asset_check(asset=table, name="sums_agree")
    def check() -> dg.AssetCheckResult:
        severity = dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(passed=passed, severity=severity, description="3 months differ")

    result = dg.materialize([table, check], instance=instance, raise_on_error=False)
    return result.run_id


def test_failed_run_is_posted_once_with_its_reason_and_a_link(tick, webhook):
    """A failed run is posted once, with what its step raised: people learn of a failed night, and only once."""
    tick()
    run_id = _run(tick.instance, fail=True)
    tick()
    tick()
    (text,) = webhook.texts
    assert text.startswith("*Run failed: ")
    assert "table: ValueError: disk &lt;full&gt; &amp; slow" in text
    assert text.endswith(f"\n{link(run_id)}")
    assert webhook.received[0]["text"].startswith("crm-analytics: Run failed: ")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "Retry 2 of 3 follows in 120 s."),
        (KeyboardInterrupt(), "Retry 2 of 3 follows at once."),
        (ValueError("a defect"), f"No retry follows: {GOES_ON}."),
    ],
)
def test_alert_says_whether_the_work_is_tried_again(tick, webhook, error, told):
    """An alert says whether the work is tried again, so that its reader knows whether to act."""

    @dg.asset
    def table() -> None:
        raise error

    tick()
    tags = {WORK_TAG: "files:abc", RUN_KEY_TAG: "files:abc:2"}
    dg.materialize([table], instance=tick.instance, tags=tags, raise_on_error=False)
    tick()
    (text,) = webhook.texts
    assert f"\n{told}\n" in text


def link(run_id: str) -> str:
    return f"<https://dagster.example.com/runs/{run_id}|Open the run in Dagster>"


def test_error_check_alerts_when_it_begins_to_fail_and_when_it_recovers(tick, webhook):
    """A check that keeps failing is posted once, and its recovery once: one that runs often would flood the channel."""
    tick()
    first = _run(tick.instance, passed=False)
    tick()
    _run(tick.instance, passed=False)
    tick()
    assert webhook.texts == [f"*Check failed: table: sums_agree*\n3 months differ\n{link(first)}"]
    second = _run(tick.instance, passed=True)
    tick()
    tick()
    assert webhook.texts[1:] == [f"*Check recovered: table: sums_agree*\n3 months differ\n{link(second)}"]
    _run(tick.instance, passed=False)
    tick()
    assert len(webhook.texts) == 3


def test_warnings_and_successes_are_not_posted(tick, webhook):
    """Warnings go to the dashboard only: a channel full of alerts that mean nothing is soon ignored."""
    tick()
    _run(tick.instance, passed=False, error=False)
    _run(tick.instance)
    assert "nothing to report" in tick().skip_message
    assert webhook.received == []


INSERT = (
    "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at,"
    " exported_at_from, status, message) VALUES ('jobs', %s, %s, 1, now(), now(), 'mtime', %s, %s)"
)


def _refuse(analytics: psycopg.Connection[Any], *names: str) -> None:
    for name in names:
        analytics.execute(INSERT, [f"jobs/{name}.csv", name, "refused", "no column created_at"])


def test_file_that_is_not_loaded_is_posted_once(tick, webhook, analytics):
    """A refused or unrecognized file is posted once; no run fails for it, and yet the numbers lack its rows."""
    analytics.execute(INSERT, ["jobs/a.csv", "1", "refused", "no column created_at"])
    analytics.execute(INSERT, ["jobs/b.csv", "2", "refused", "was damaged"])
    analytics.execute(INSERT, ["jobs/b.csv", "3", "loaded", None])
    tick()
    tick()
    assert webhook.texts == ["*File not loaded: jobs/a.csv*\nno column created_at"]
    analytics.execute(INSERT, ["jobs/a.csv", "4", "refused", "still no column created_at"])
    tick()
    assert webhook.texts[1:] == ["*File not loaded: jobs/a.csv*\nstill no column created_at"]
    analytics.execute(INSERT.replace("'jobs'", "NULL"), ["notes.txt", "5", "unrecognized", "fits no source"])
    for _ in range(2):
        tick()
    assert webhook.texts[2:] == ["*File not loaded: notes.txt*\nfits no source"]


def test_webhook_that_is_down_loses_nothing_and_keeps_its_secret(tick, webhook):
    """What a webhook missed while it was down comes afterwards, and no message quotes its address, which is a password."""
    tick()
    _run(tick.instance, fail=True)
    webhook.status = 500
    with pytest.raises(WebhookError, match=r"127\.0\.0\.1 did not accept the message: 500") as failure:
        tick()
    assert "secret-part" not in "".join(traceback.format_exception(failure.value))
    webhook.status = 200
    tick()
    assert len(webhook.texts) == 1


def test_accepted_alerts_are_not_sent_again_when_the_rest_fails(tick, webhook, analytics):
    """Messages that got through are not repeated, even if the webhook goes down halfway through a tick."""
    tick()
    run_id = _run(tick.instance, fail=True)
    _refuse(analytics, *(f"{n:02}" for n in range(24)))
    webhook.judge = lambda body: 200 if not webhook.received else 503
    assert "20 alerts sent, 5 alerts waiting" in tick().skip_message
    for _ in range(2):
        with pytest.raises(WebhookError, match="503"):
            tick()
    _refuse(analytics, "later")
    webhook.judge = lambda body: 200
    assert "6 alerts sent" in tick().skip_message
    assert "nothing to report" in tick().skip_message
    assert [text for text in webhook.texts if run_id in text] == [webhook.texts[0]]
    assert len(webhook.texts) == len(set(webhook.texts)) == 26


def test_alert_that_the_webhook_refuses_does_not_hold_up_others(tick, webhook, analytics):
    """An alert that the webhook cannot read is set aside; otherwise it would end all alerting."""
    tick()
    webhook.judge = lambda body: (
        400 if any("bad.csv" in block["text"]["text"] for block in body["blocks"]) else 200
    )
    _refuse(analytics, "bad")
    for _ in range(2):  # alone it may be the address that is wrong
        with pytest.raises(WebhookError, match="400"):
            tick()
    _refuse(analytics, "good")
    data = tick()
    assert "1 alert sent, 1 alert refused by the webhook" in data.skip_message
    assert webhook.texts == ["*File not loaded: jobs/good.csv*\nno column created_at"]
    assert "nothing to report" in tick().skip_message


def test_wrong_address_loses_nothing(tick, webhook, analytics):
    """A status that is about the address sets no alert aside, whatever was sent before."""
    tick()
    _refuse(analytics, *(f"{n:02}" for n in range(21)))
    webhook.judge = lambda body: 404 if webhook.received else 200
    assert "20 alerts sent, 1 alert waiting" in tick().skip_message
    webhook.judge = lambda body: 200
    tick()
    assert len(webhook.texts) == len(set(webhook.texts)) == 21


def test_without_url_nothing_is_sent_and_old_failures_stay_old(tick, webhook):
    """Without an address nothing is sent, and switching alerts on later doesn't bring last year's failures."""
    tick()
    _run(tick.instance, fail=True)
    assert "no alerts" in tick(alert_webhook_url=None).skip_message
    tick()
    assert webhook.received == []


def test_many_alerts_come_in_messages_that_slack_accepts(tick, webhook, analytics: psycopg.Connection[Any]):
    """Alerts are split by Slack's limits, 50 blocks per message and 3000 characters per block."""
    for number in range(45):
        analytics.execute(
            "INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, exported_at,"
            " exported_at_from, status, message) VALUES ('jobs', %s, %s, 1, now(), now(), 'mtime', 'refused', %s)",
            [f"jobs/{number}.csv", str(number), "x" * 5000],
        )
    tick()
    assert [len(body["blocks"]) for body in webhook.received] == [20, 20, 5]
    assert all(len(text) <= 3000 for text in webhook.texts)
    assert len(set(webhook.texts)) == 45


def test_message_keeps_the_link_of_a_long_text():
    """A text that is cut keeps its link to the run."""
    (block,) = message([Alert("t", "x" * 9999, "abc")], "http://localhost:3000")["blocks"]
    assert block["text"]["text"].endswith("<http://localhost:3000/runs/abc|Open the run in Dagster>")
    assert len(block["text"]["text"]) <= LONGEST_TEXT + 100


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/secret-part", "ftp://example.com/secret-part", "secret-part", "http://[secret-part",
        "http://127.0.0.1:secret-part/", "http://a:secret-part@127.0.0.1/", "http://127.0.0.1/secret-part /",
        "http://127.0.0.1/secret-part/ü",
    ],
)  # fmt: skip
def test_only_http_addresses_are_posted_to(url):
    """Only http(s) addresses are posted to; urllib would read a local file. What is no address is never quoted."""
    with pytest.raises(WebhookError, match="did not accept the message") as failure:
        post(url, {})
    assert "secret-part" not in "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_redirect_is_no_acceptance(webhook, status):
    """A redirect isn't followed: the page that it leads to would answer 200 to a GET, and the message would be lost."""
    webhook.status = status
    with pytest.raises(WebhookError, match=f"did not accept the message: {status}") as failure:
        post(webhook.url, {})
    assert failure.value.status == status and webhook.followed == 0


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-secret-part\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: 1\r\n" * 200]
)
def test_what_speaks_no_http_is_no_acceptance(answer):
    """A port that answers something else, or nothing, is told like any webhook that is down, without what it said."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        served = threading.Thread(target=serve)
        served.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/secret-part"
        with pytest.raises(WebhookError, match=r"127\.0\.0\.1 did not accept the message: \w+$") as failure:
            post(url, {})
        served.join()
    assert "secret-part" not in "".join(traceback.format_exception(failure.value))


def test_work_that_succeeds_after_a_failure_is_told_and_first_attempts_are_not(tick, webhook):
    """Whoever read that a run died reads that its work is done; work that succeeds at once is no news."""

    @dg.asset
    def table() -> None:
        if fails:
            raise KeyboardInterrupt

    tick()
    for attempt in (1, 2):
        fails = attempt == 1
        tags = {WORK_TAG: "files:abc", RUN_KEY_TAG: f"files:abc:{attempt}"}
        dg.materialize([table], instance=tick.instance, tags=tags, raise_on_error=False)
    dg.materialize([table], instance=tick.instance, tags={WORK_TAG: "b", RUN_KEY_TAG: "b:1"})
    tick()
    tick()
    died, recovered = webhook.texts
    assert died.startswith("*Run died: ") and "\nRetry 1 of 3 follows at once.\n" in died
    assert recovered.startswith("*Run recovered: ")
    assert "\nAttempt 2 succeeded: what failed before is done.\n" in recovered


def test_failed_run_of_a_schedule_says_when_it_is_tried_again(tick, webhook):
    """No sensor repeats the run of a schedule, which comes by itself: nobody has to start it."""

    @dg.asset
    def table() -> None:
        raise ValueError("a defect")

    tick()
    tags = {"dagster/schedule_name": "crm_seal_schedule"}
    dg.materialize([table], instance=tick.instance, tags=tags, raise_on_error=False)
    tick()
    (text,) = webhook.texts
    assert "\ncrm_seal_schedule starts it again at its next time.\n" in text


def test_check_of_some_months_is_not_told_to_recover(tick, webhook):
    """A check that covers its run's months passes when other months are right: the wrong ones may still be wrong."""

    @dg.asset(key=["analytics", "daily_metrics"])
    def table() -> None:
        pass

    @dg.asset_check(asset=table, name="metrics_equal_facts")
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=next(verdicts))

    verdicts = iter((False, True, False))
    tick()
    for _ in range(3):
        dg.materialize([table, check], instance=tick.instance, raise_on_error=False)
        tick()
    assert [text.split("\n")[0] for text in webhook.texts] == [
        "*Check failed: analytics/daily_metrics: metrics_equal_facts*"
    ] * 2


def test_what_was_sent_is_written_down_with_its_outcome(tick, webhook, analytics):
    """The page of operation/alerts says what was sent, and what the webhook refused, in the order of sending."""
    tick()
    webhook.judge = lambda body: (
        400 if any("bad.csv" in block["text"]["text"] for block in body["blocks"]) else 200
    )
    _refuse(analytics, "bad", "good")
    tick()
    run_id = _run(tick.instance, fail=True)
    tick()
    records = tick.instance.fetch_observations(ALERTS_KEY, limit=10, ascending=True).records
    found = [record.asset_observation.metadata for record in records]
    assert [(values["alert"].value.split(",")[0], values["outcome"].value) for values in found] == [
        ("File not loaded: jobs/good.csv", "sent"),
        ("File not loaded: jobs/bad.csv", "refused by the webhook"),
        ("Run failed: __ephemeral_asset_job__", "sent"),
    ]
    assert found[0]["detail"].value == "no column created_at"
    assert found[2]["run"].value == run_id


def test_alert_that_cannot_be_written_down_is_not_sent_again(tick, webhook, monkeypatch):
    """What is sent is sent: a page that cannot be written costs its line, not a second alert."""

    def fail(_: object) -> None:
        raise OSError("no space left")

    tick()
    _run(tick.instance, fail=True)
    with monkeypatch.context() as broken:
        broken.setattr(tick.instance, "report_runless_asset_event", fail)
        assert "1 alert sent" in tick().skip_message
    assert "nothing to report" in tick().skip_message
    assert len(webhook.texts) == 1
    assert tick.instance.fetch_observations(ALERTS_KEY, limit=1).records == []


def test_more_runs_than_dagster_returns_at_once(tick, webhook, monkeypatch):
    """After a long outage there may be more failed runs than one page has; each of them is told, the oldest first."""
    tick()
    failed = [_run(tick.instance, fail=True) for _ in range(5)]
    monkeypatch.setattr("crm_analytics.orchestration.alerts.PAGE", 2)
    tick()
    assert [run_id for text in webhook.texts for run_id in failed if run_id in text] == failed
    assert len(webhook.texts) == 5


def test_recovery_waits_behind_the_alert_that_it_ends(tick, webhook, analytics):
    """What a webhook has not taken yet is sent first, so that nobody reads of a recovery before the failure."""
    tick()
    _refuse(analytics, *(f"{n:02}" for n in range(21)))
    webhook.judge = lambda body: 503 if webhook.received else 200
    _run(tick.instance, passed=False)
    tick()
    webhook.judge = lambda body: 200
    _run(tick.instance, passed=True)
    tick()
    titles = [text.split("\n")[0] for text in webhook.texts]
    assert len(titles) == len(set(titles)) == 23
    assert titles.index("*Check failed: table: sums_agree*") < titles.index(
        "*Check recovered: table: sums_agree*"
    )

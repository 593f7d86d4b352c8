"""Workiz, as it has been seen to answer: the file has every job, or isn't there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from werkzeug import Response

from crm_analytics.analytics.connectors.connector import Window
from crm_analytics.analytics.connectors.errors import ConnectorError, TransientError
from crm_analytics.analytics.connectors.workiz import PACE, WORKIZ_JOBS, WORKIZ_LEADS
from crm_analytics_tests.analytics.connectors.conftest import NOW, Pulling, identities, once, read
from crm_analytics_tests.analytics.connectors.workiz_server import TOKEN, job, serving

JULY = Window(NOW.date().replace(day=1), None)


def jobs(count: int) -> list[dict[str, Any]]:
    return [job(number) for number in range(count)]


def ids(count: int) -> list[str]:
    return [f"J{number:05}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 345])
@pytest.mark.parametrize("envelope", ["has_more", "found", "bare", "parts"])
@pytest.mark.parametrize("counts", ["records", "pages"])
def test_both_meanings_of_offset_in_every_envelope(
    pulling: Pulling, counts: str, envelope: str, count: int
) -> None:
    """Whatever `offset` counts and whatever is around the records, the file has each job once, also at full pages."""
    with serving(jobs(count), counts=counts, envelope=envelope) as workiz:
        result = pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    (file,) = pulling.files
    assert identities(file) == ids(count)
    assert (result.records, result.pages, result.files) == (count, len(workiz.asked), (f"jobs/{file.name}",))
    assert result.covers == ({"by": "scheduled_at", "from": "2024-06-01", "to": None} if count > 1 else None)
    assert pulling.spools == []


def test_what_is_asked(pulling: Pulling) -> None:
    """Done and canceled jobs are asked for, too, a day more than the window, at most a request a second."""
    with serving(jobs(345)) as workiz:
        pulling(WORKIZ_JOBS, JULY, workiz_url=workiz.url)
    assert all(
        {**query, "offset": ""}
        == {"offset": "", "records": "100", "only_open": "false", "start_date": "2024-06-30"}
        for query in workiz.asked
    )
    # the second measures what offset counts, and each later one begins with the last record of the one before
    assert [query["offset"] for query in workiz.asked] == ["0", "1", "100", "199", "298"]
    assert len(pulling.clock.waits) == 4 and all(PACE * 0.99 < wait <= PACE for wait in pulling.clock.waits)


def test_records_are_what_the_service_sent(pulling: Pulling) -> None:
    """Numbers keep their last zero, text its signs, and null stays null: reading them is the loader's task."""
    with serving([job(1, Comments="ä — “x”\n\u2028"), job(3)], envelope="bare") as workiz:
        workiz.instead = [
            Response(
                '[{"UUID": "A1", "JobTotalPrice": 150.10, "SubTotal": "99,5", "Unit": 12345678901234567890, "Tags": null,'
                ' "Comments": "ä — “x”\\n\\ud800"}]',
                content_type="text/plain",
            )
        ]
        pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    (record,) = read(pulling.files[0])[1]
    assert str(record["JobTotalPrice"]) == "150.10" and record["SubTotal"] == "99,5"
    assert record["Unit"] == 12345678901234567890 and record["Tags"] is None
    assert record["Comments"] == "ä — “x”\n\ud800"


def test_leads_have_their_own_list(pulling: Pulling) -> None:
    """Leads come from their own address, and their own time tells what the service filters by."""
    leads = [
        {"UUID": f"L{n}", "CreatedDate": "2024-05-01 08:00:00", "LeadDateTime": "2024-07-02 09:00:00"}
        for n in range(3)
    ]
    with serving(leads) as workiz:
        result = pulling(WORKIZ_LEADS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == ["L0", "L1", "L2"]
    assert pulling.files[0].parent.name == "workiz_leads"
    assert result.covers == {"by": "scheduled_at", "from": "2024-06-01", "to": None}


@pytest.mark.parametrize(
    ("created", "scheduled", "by"),
    [
        ("2024-05-01 08:00:00", "2024-07-02 09:00:00", "scheduled_at"),
        ("2024-07-01 08:00:00", "2024-05-02 09:00:00", "job_date"),
        ("2024-07-01 08:00:00", "2024-07-02 09:00:00", None),
        ("2024-07-01 08:00:00", None, None),
        ("2024-05-01 08:00:00", "2024-05-02 09:00:00", None),
    ],
)
def test_what_a_file_proves_follows_from_its_records(
    pulling: Pulling, created: str, scheduled: str | None, by: str | None
) -> None:
    """Whether the service filters by the scheduled or the creation day is seen in the records, or nothing is claimed.

    A job created before the days asked for is only there if the service filters by the scheduled day.
    """
    with serving([job(1, CreatedDate=created, JobDateTime=scheduled)]) as workiz:
        result = pulling(WORKIZ_JOBS, JULY, workiz_url=workiz.url)
    assert result.covers == (by and {"by": by, "from": "2024-07-01", "to": None})
    assert read(pulling.files[0])[0]["covers"] == result.covers


@pytest.mark.parametrize("counts", ["records", "pages"])
@pytest.mark.parametrize("request_number", [2, 3, 4])
def test_row_that_moves_to_a_later_page_counts_once(
    pulling: Pulling, counts: str, request_number: int
) -> None:
    """A job that is booked at the head of the list moves the others, so that one comes twice: the later one counts."""
    with serving(jobs(345), counts=counts) as workiz:

        def book() -> None:
            workiz.jobs[:] = [job(900), *({**old, "Status": "Late"} for old in workiz.jobs)]

        workiz.before = once((request_number, book))
        result = pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == [*ids(345), "J00900"], "the next reading has the new one, too"
    assert {record["Status"] for record in read(pulling.files[0])[1][:345]} == {"Late"}
    assert result.covers is not None


@pytest.mark.parametrize("envelope", ["has_more", "found", "bare"])
@pytest.mark.parametrize("counts", ["records", "pages"])
def test_row_that_slips_through_is_noticed_and_fetched(pulling: Pulling, counts: str, envelope: str) -> None:
    """A job that leaves a page already read moves one over the boundary, unseen: the list is read again, and has it."""
    with serving(jobs(345), counts=counts, envelope=envelope) as workiz:
        workiz.before = once((4, lambda: workiz.jobs.__delitem__(5)))
        result = pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    # the one that left was there when it was read
    assert identities(pulling.files[0]) == ids(345)
    assert result.covers is not None


def test_list_that_never_stands_still_proves_nothing(pulling: Pulling) -> None:
    """After three readings during which jobs moved, the file has what any of them had, and claims nothing."""
    with serving(jobs(345)) as workiz:

        def move(number: int) -> None:
            if number % 2 == 0:
                workiz.jobs.insert(0, workiz.jobs.pop())

        workiz.before = move
        result = pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == ids(345)
    assert result.covers is None and result.note is not None and "moved between pages" in result.note


def test_service_that_gives_less_than_asked_for(pulling: Pulling) -> None:
    """A page shorter than asked for is no end while the service says that there is more."""
    with serving(jobs(120), cap=50) as workiz:
        pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == ids(120)


@pytest.mark.parametrize("count", [100, 120, 345])
@pytest.mark.parametrize("counts", ["records", "pages"])
def test_promise_of_more_that_is_not_kept(pulling: Pulling, counts: str, count: int) -> None:
    """A service that always says that there are more has its list read again, and is believed when nothing more comes."""
    with serving(jobs(count), counts=counts) as workiz:
        wrapped = workiz._wrapped
        workiz._wrapped = lambda page, end: {**wrapped(page, end), "has_more": True}  # type: ignore[method-assign]
        result = pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == ids(count)
    assert result.covers is not None


def test_service_that_ignores_the_offset_is_refused(pulling: Pulling) -> None:
    """The same page again and again, with the promise of more, must not pass for the whole list."""
    with serving(jobs(345)) as workiz:
        page = workiz._wrapped(workiz.jobs[:100], 100)
        workiz._wrapped = lambda *_: page  # type: ignore[method-assign]
        with pytest.raises(ConnectorError, match="says that there are more jobs, but sends the same ones"):
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert pulling.files == []


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_token_is_one_sentence(pulling: Pulling, status: int) -> None:
    """A wrong token is refused at once, with the variable to set, and no further request."""
    with serving(jobs(3), denial=status) as workiz:
        workiz.token = "another"
        with pytest.raises(ConnectorError) as refused:
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert not isinstance(refused.value, TransientError)
    assert str(refused.value).startswith("Workiz does not accept WORKIZ_TOKEN: copy the API token again")
    assert len(workiz.asked) == 1 and pulling.files == []


def test_token_that_expires_in_the_middle(pulling: Pulling) -> None:
    """Half a list is no file. With the new token, the pull goes on at the page where the old one ended."""
    with serving(jobs(345)) as workiz:
        workiz.before = once((4, lambda: setattr(workiz, "token", "new")))
        with pytest.raises(ConnectorError, match="WORKIZ_TOKEN"):
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
        assert pulling.files == []
        assert len(pulling.spools) == 1
        pulling(WORKIZ_JOBS, workiz_url=workiz.url, workiz_token=SecretStr(" new\n"))
    assert [query["offset"] for query in workiz.asked] == ["0", "1", "100", "199", "199", "298"]
    assert identities(pulling.files[0]) == ids(345)
    assert pulling.spools == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ('{"flag": false, "msg": "Account  suspended"}', r"refuses to list jobs \(Account suspended\)"),
        ('[{"flag": true, "data": {"UUID": "A"}}, {"flag": false, "data": []}]', "refuses to list jobs"),
        ('{"flag": "false", "data": []}', "refuses to list jobs"),
        ('{"flag": true}', "found: an object with flag; accepted: records"),
        ('{"status": "ok"}', "found: an object with status; accepted: records"),
        ('"ok"', "found: str"),
        ('{"flag": true, "data": {"UUID": "A"}}', "accepted: records"),
        ('{"flag": true, "data": ["A"]}', "accepted: records"),
        ('[{"SerialId": 1}]', "a record has no UUID; found the fields SerialId"),
    ],
)
def test_what_is_no_list_is_refused(pulling: Pulling, body: str, told: str) -> None:
    """An answer with status 200 that isn't a list of jobs is refused, not taken for an empty one."""
    with serving(jobs(345)) as workiz:
        workiz.instead = [None, None, Response(body, content_type="application/json")]
        with pytest.raises(ConnectorError, match=told):
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert pulling.files == []


@pytest.mark.parametrize(
    "answer",
    [
        lambda: Response("<html><title>Just a moment…</title>", content_type="text/html"),
        lambda: Response('{"flag": true, "data": [{"UUID": "J', content_type="application/json"),
        lambda: Response(iter(['{"flag": true, "data": []}']), headers={"Content-Length": "5000"}),
        lambda: Response("", 502),
        lambda: Response("slow down", 429),
        lambda: Response("slow down", 429, headers={"Retry-After": "7"}),
        lambda: Response("slow down", 503, headers={"Retry-After": "Wed, 31 Jul 2024 18:00:20 GMT"}),
    ],
    ids=["web page", "cut JSON", "cut connection", "502", "429", "429 in seconds", "503 until a date"],
)
def test_what_passes_by_itself_is_tried_again(pulling: Pulling, answer: Callable[[], Response]) -> None:
    """What a busy service or a firewall sends instead of data costs time, and no record."""
    with serving(jobs(345)) as workiz:
        workiz.instead = [None, answer(), None, answer(), answer()]
        pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert identities(pulling.files[0]) == ids(345)
    assert len(workiz.asked) == 5 + 3
    assert max(pulling.clock.waits) > 2


def test_the_token_is_in_no_text(pulling: Pulling, caplog: pytest.LogCaptureFixture) -> None:
    """The token is a part of the address: no log at any level, no report and no error has it, nor what is behind an error."""
    caplog.set_level("DEBUG")
    texts: list[str] = []
    with serving(jobs(345)) as workiz:
        pulling(WORKIZ_JOBS, workiz_url=workiz.url)
        for answer in (Response(f"<title>{TOKEN}</title>"), Response(f'{{"msg": "{TOKEN}"}}', 400)):
            workiz.instead = [answer] * 10
            texts += _texts(pulling, workiz.url)
        workiz.token = "another"
        texts += _texts(pulling, workiz.url)
    texts += _texts(pulling, "http://127.0.0.1:1")
    texts += _texts(pulling, "nothing://x")
    texts += pulling.reports + [str(path.read_bytes()) for path in pulling.files]
    # the server in this process writes a log of its own
    logged = [record for record in caplog.records if record.name != "werkzeug"]
    assert any("GET /" in record.getMessage() for record in logged), "urllib3 logs addresses"
    texts += [f"{record.getMessage()} {record.args} {record.exc_text}" for record in logged]
    assert len(texts) > 20
    for form in (TOKEN, "api_k3y", "odd+signs", "odd%2Bsigns"):
        assert [text for text in texts if form in text] == []


def _texts(pulling: Pulling, url: str) -> list[str]:
    """Returns all texts of the error that a pull raises, and of those that led to it."""
    with pytest.raises(ConnectorError) as caught:
        pulling(WORKIZ_JOBS, Window(NOW.date(), None), workiz_url=url)
    chain: list[BaseException] = []
    error: BaseException | None = caught.value
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return [f"{error} {error!r} {error.args}" for error in chain]


def test_service_that_stays_busy(pulling: Pulling) -> None:
    """After seven attempts the pull gives up for now, within minutes, and says that it is tried again."""
    with serving(jobs(3)) as workiz:
        workiz.instead = [Response("", 429)] * 20
        with pytest.raises(TransientError, match=r"429, too many requests, 7 times; nothing was written"):
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
        assert len(workiz.asked) == 7 and 60 < pulling.clock.seconds < 300
        workiz.instead = [Response("", 429, headers={"Retry-After": "3600"})]
        with pytest.raises(TransientError, match="asks to wait 3,600 seconds"):
            pulling(WORKIZ_JOBS, workiz_url=workiz.url)
    assert len(workiz.asked) == 8 and pulling.files == []

"""Workiz: jobs and leads, by its REST API.

Its list has no order that is promised, and rows move between pages while these are read. So a reading proves that it has
every row, or else is done again (docs/decisions/connectors.md).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import quote

from crm_analytics.analytics.connectors.client import Client, Clock, words_of
from crm_analytics.analytics.connectors.connector import (
    Added,
    Covers,
    Page,
    Pages,
    Reading,
    Record,
    RecordConnector,
    Window,
    secret,
)
from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.core.settings import Settings

#: Records per page, as many as the service gives.
ASKED = 100
#: Seconds from request to request: it refuses 25 to 30 quick ones.
PACE = 1.0
#: Readings of the whole list until one proves complete.
MOST_PASSES = 3


@dataclass(frozen=True)
class _Answer:
    """A page as the service sent it, and whether there are more, if it says so.

    Its `found` is left alone: a count stays the same when one job leaves and another one comes.
    """

    records: list[Record]
    more: bool | None = None


@dataclass(frozen=True)
class _Place:
    """How far a reading has come, and what it has seen; a pull that was killed goes on from here."""

    #: What `offset` counts; unknown before it was measured.
    counts: Literal["records", "pages"] | None = None
    #: Records or pages that were read.
    done: int = 0
    pass_no: int = 1
    #: The id of the last record read.
    last: str | None = None
    #: Whether nothing has moved in this pass, as far as it can be seen.
    still: bool = True
    #: Whether a record was new in this pass.
    news: bool = False
    #: Whether records came that were created, or are scheduled, before the days asked for: it tells the filter.
    created_before: bool = False
    scheduled_before: bool = False


#: Yields pages like `Pages`, and returns where the list ended, and whether every record was surely seen.
_Pass = Generator[Page, Added, tuple[_Place, bool]]


@dataclass(frozen=True, kw_only=True)
class WorkizConnector(RecordConnector):
    """A list of Workiz's API."""

    #: In the path.
    entity: str
    #: The field and the source's column of the scheduled time, by which the service probably filters.
    scheduled: tuple[str, str]
    #: The field and the source's column of the creation, by which it may filter, too.
    created: tuple[str, str]

    def client(self, config: Settings, clock: Clock) -> Client:
        """Returns a client whose address has the token as a part of its path."""
        token = secret(config, "workiz_token")
        return Client(
            "Workiz",
            f"{config.workiz_url.rstrip('/')}/{quote(token, safe='')}",
            secrets=[token],
            pace=PACE,
            denied="Workiz does not accept WORKIZ_TOKEN: copy the API token again from its settings (docs/connectors.md)",
            clock=clock,
        )

    def pages(self, client: Client, window: Window, resume: Mapping[str, Any] | None) -> Pages:
        """Reads the list from its start to its end, at most three times, until a reading proves complete."""
        # whether the last page that was kept had news isn't
        place = _Place() if resume is None else replace(_Place(**resume), news=True)
        while True:
            place, proven = yield from self._pass(client, window, place)
            if proven:
                return Reading(self._covers(window, place))
            if place.pass_no == MOST_PASSES:
                note = (
                    f"records moved between pages in each of {MOST_PASSES} readings, so this file has what any of them had,"
                    " and proves nothing about vanished rows"
                )
                return Reading(None, note)
            place = replace(place, pass_no=place.pass_no + 1, done=0, last=None, still=True, news=False)

    def _pass(self, client: Client, window: Window, place: _Place) -> _Pass:
        """Reads the list once; returns the place at its end, and whether it surely has every record."""
        first: list[str] = []
        probe = 1
        more: bool | None = None
        while True:
            measuring = place.counts is None and place.done > 0
            # one record again, where that is possible: if it isn't the same, something has moved
            again = int(place.counts == "records" and place.last is not None)
            offset = probe if measuring else place.done - again
            answer = self._ask(client, window, offset)
            ids = [self.identity(record) for record in answer.records]
            place = self._noted(window, place, answer.records)
            if measuring and ids == first and probe == 1:
                # pages that are counted from 1, or a record that was added at the head just now
                probe = 2
            elif measuring:
                place = self._measured(place, first, probe, ids)
            elif again and ids[:1] != [place.last]:
                place = replace(place, still=False)
            if place.counts == "records":
                place = replace(place, done=offset + len(ids))
            elif place.counts == "pages":
                place = replace(place, done=offset + 1)
            elif not measuring:
                first, place = ids, replace(place, done=len(ids))
            place = replace(place, last=ids[-1] if ids else place.last)
            added = yield Page(
                answer.records, None if place.counts is None else asdict(place), pass_no=place.pass_no
            )
            place = replace(place, news=place.news or added.new > 0)
            if more and added.repeated == len(ids):
                # more were promised
                place = replace(place, still=False)
            more = answer.more
            if self._ended(answer, added.repeated, offset):
                break
        alone = place.counts is None
        # pages have no record in common, so only another reading can tell
        proven = place.still and (alone or place.counts == "records")
        confirmed = place.pass_no > 1 and not place.news and added.left == 0
        return place, proven or confirmed

    def _ask(self, client: Client, window: Window, offset: int) -> _Answer:
        parameters: dict[str, Any] = {"offset": offset, "records": ASKED, "only_open": "false"}
        if window.first is not None:
            parameters["start_date"] = self._asked_from(window)
        return self._opened(client.get(f"{self.entity}/all/", parameters))

    def _asked_from(self, window: Window) -> str:
        """Returns the day that the service is asked from: one more, as its days may begin at another hour than ours."""
        assert window.first is not None
        return (window.first - timedelta(days=1)).isoformat()

    def _opened(self, answer: Any) -> _Answer:
        """Returns the records in an answer's envelope, of which there are several kinds."""
        if answer is None:
            return _Answer([], more=False)
        if isinstance(answer, Mapping):
            self._require_flag(answer)
            if "data" not in answer:
                raise self._not_an_answer(answer)
            data = answer["data"]
            records = self._records([] if data in (None, "") else data)
            return _Answer(records, _truth(answer.get("has_more")))
        if isinstance(answer, list):
            if answer and all(isinstance(part, Mapping) and "data" in part for part in answer):
                opened = [self._opened_part(part) for part in answer]
                return _Answer([record for records in opened for record in records])
            return _Answer(self._records(answer))
        raise self._not_an_answer(answer)

    def _opened_part(self, part: Mapping[str, Any]) -> list[Record]:
        self._require_flag(part)
        data = part["data"]
        return self._records(data if isinstance(data, list) else [data])

    def _require_flag(self, answer: Mapping[str, Any]) -> None:
        if _truth(answer.get("flag", True)) is False:
            raise ConnectorError(
                f"Workiz refuses to list {self.entity}s{words_of(answer)}; nothing was written. If it says that the token is"
                " wrong, copy WORKIZ_TOKEN again (docs/connectors.md)"
            )

    def _records(self, data: Any) -> list[Record]:
        if not isinstance(data, list) or not all(isinstance(record, Mapping) for record in data):
            raise self._not_an_answer(data)
        return data

    def _not_an_answer(self, found: Any) -> ConnectorError:
        kind = type(found).__name__
        if isinstance(found, Mapping):
            kind = f"an object with {', '.join(sorted(map(str, found)))[:100] or 'nothing'}"
        return ConnectorError(
            f"Workiz answers with something else than a list of {self.entity}s; found: {kind}; accepted: records, or an"
            " object with data. Nothing was written"
        )

    def _noted(self, window: Window, place: _Place, records: list[Record]) -> _Place:
        if window.first is None:
            return place
        start = self._asked_from(window)
        return replace(
            place,
            created_before=place.created_before
            or any("" < _day(record.get(self.created[0])) < start for record in records),
            scheduled_before=place.scheduled_before
            or any("" < _day(record.get(self.scheduled[0])) < start for record in records),
        )

    def _measured(self, place: _Place, first: list[str], probe: int, ids: list[str]) -> _Place:
        """Finds out what `offset` counts: the answer to `offset=1` has the first page's records but one, or others."""
        same = len(set(first) & set(ids))
        if ids != first and same * 2 > len(first):
            return replace(place, counts="records", still=ids[: len(first) - probe] == first[probe:])
        return replace(place, counts="pages")

    def _ended(self, answer: _Answer, repeated: int, offset: int) -> bool:
        """Returns whether the list ends with this page."""
        if answer.more is False or not answer.records:
            return True
        nothing_new = repeated == len(answer.records) and offset > 1
        is_short = len(answer.records) < ASKED
        if answer.more is None or is_short:
            return nothing_new or (is_short and answer.more is None)
        if nothing_new:
            raise ConnectorError(
                f"Workiz says that there are more {self.entity}s, but sends the same ones again (offset {offset}); nothing was"
                " written"
            )
        return False

    def _covers(self, window: Window, place: _Place) -> Covers | None:
        """Returns what a complete reading covers; None where its records don't tell by which day the service filters."""
        if place.created_before == place.scheduled_before:
            return None
        return Covers((self.scheduled if place.created_before else self.created)[1], window)


def _day(value: Any) -> str:
    """Returns the day of a timestamp as YYYY-MM-DD; nothing for a missing one."""
    text = str(value or "")
    return text[:10] if re.match(r"[12]\d{3}-\d\d-\d\d", text) else ""


def _truth(value: Any) -> bool | None:
    """Returns a flag, which may come as a number or a text; None if there is none."""
    if value is None or value == "":
        return None
    return str(value).strip().lower() not in ("false", "0", "no")


WORKIZ_JOBS = WorkizConnector(
    name="workiz_jobs",
    title="Workiz: jobs",
    description="Jobs of Workiz, done and canceled ones too, by its API.",
    sources=("jobs",),
    needs=("workiz_token",),
    days_back=60,
    takes_last_day=False,
    key="UUID",
    entity="job",
    scheduled=("JobDateTime", "scheduled_at"),
    created=("CreatedDate", "job_date"),
)
WORKIZ_LEADS = WorkizConnector(
    name="workiz_leads",
    title="Workiz: leads",
    description="Leads of Workiz, lost and converted ones too, by its API.",
    sources=("workiz_leads",),
    needs=("workiz_token",),
    days_back=60,
    takes_last_day=False,
    key="UUID",
    entity="lead",
    scheduled=("LeadDateTime", "scheduled_at"),
    created=("CreatedDate", "created_at"),
)

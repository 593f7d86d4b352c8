"""The landing folder in object storage: the same files are read, and whatever goes wrong there is told in one sentence."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import obstore
import openpyxl
import psycopg
import pytest

from crm_analytics.analytics.diff import diff_files
from crm_analytics.analytics.ingest.dry_run import examine
from crm_analytics.analytics.ingest.loading import landing as landing_folder
from crm_analytics.analytics.ingest.loading.landing import not_loaded, pending
from crm_analytics.analytics.ingest.loading.load import load_source
from crm_analytics.analytics.ingest.loading.rebuild import CannotRebuild, rebuilt
from crm_analytics.analytics.ingest.loading.results import LoadResult
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics.analytics.ingest.storage.bucket import Bucket
from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable, LandingUnreachable
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics_tests.analytics.ingest.landing_folder import (
    ELOCALS,
    NEW_YORK,
    Landing,
    record_calls,
    text,
)
from crm_analytics_tests.object_storage import (
    KEY,
    SECRET,
    Fault,
    Prefix,
    Proxy,
    Request,
    busy,
    cut,
    late,
    proxy,
)

Connection = psycopg.Connection[Any]
_JANUARY = date(2025, 1, 1)


def leads(*costs: str) -> str:
    rows = [
        (chr(65 + n), "2025-01-05 10:21:17 -0500", "01:10", cost, "ok", "") for n, cost in enumerate(costs)
    ]
    return text(ELOCALS, rows)


def load(connection: Connection, landing: Bucket, **options: Any) -> LoadResult:
    return load_source(connection, landing, "elocals_leads", timezone=NEW_YORK, **options)


def statuses(result: LoadResult) -> list[tuple[str, str]]:
    return [(file.path, file.status) for file in result.files]


def costs(connection: Connection) -> list[str]:
    found = connection.execute("SELECT cost::text FROM raw.elocals_leads ORDER BY lead_id").fetchall()
    return [cost for (cost,) in found]


def names(connection: Connection, landing: Bucket | LocalFolder) -> list[str]:
    return [file.name for file in pending(connection, landing)]


@pytest.fixture
def through(prefix: Prefix) -> Iterator[Proxy]:
    with proxy(prefix.endpoint) as found:
        yield found


# -- what is found ---------------------------------------------------------------------------------------------------


def test_objects_load_once_at_once(prefix: Prefix, analytics: Connection) -> None:
    """An object is loaded as soon as it is there, since it appears whole, and not again; loose ones are recognized."""
    landing = prefix.landing()
    prefix.write("elocals_leads/a.csv", leads("10"))
    prefix.write("leads cost Elocals October.csv", leads("10", "20"))
    assert landing.quiet_seconds == 0
    assert statuses(load(analytics, landing, quiet_seconds=landing.quiet_seconds)) == [
        ("elocals_leads/a.csv", "loaded"),
        ("leads cost Elocals October.csv", "loaded"),
    ]
    assert costs(analytics) == ["10.00", "20.00"]
    assert pending(analytics, landing) == [] and load(analytics, landing).files == []
    (known,) = analytics.execute("SELECT etag FROM raw.source_files WHERE path = 'elocals_leads/a.csv'")
    assert known == (landing.scan().files[0].etag,)


def test_names_that_count(prefix: Prefix) -> None:
    """Ignored names, folders and markers of folders are no files; unusual characters are part of a name."""
    kept = [
        "ä ö.csv", "elocals_leads/2024.10/x.csv", "elocals_leads/a+b&c%20d#?.csv", "elocals_leads/empty.csv",
        "elocals_leads/q'\"<>*[1]{2}~|^`.csv", "elocals_leads/x\u0301 (1).csv", "elocals_leads/😀.csv", "jobs/a.csv",
    ]  # fmt: skip
    for name in kept:
        prefix.write(name, "" if "empty" in name else "x")
    # without their slash, as the library shows them
    for marker in ("jobs", "payments", "elocals_leads/2024.10"):
        prefix.write(f"{marker}/", "")
    for name in (
        ".hidden.csv",
        "jobs/.hidden/a.csv",
        "jobs/~$a.xlsx",
        "jobs/a.csv.part",
        "jobs/Thumbs.db",
        "jobs/.keep",
    ):
        prefix.write(name, "x")
    listing = prefix.landing().scan()
    assert [file.name for file in listing.files] == sorted(kept) and listing.unreadable == []
    assert [file.size for file in listing.files] == ["empty" not in name for name in sorted(kept)]
    assert all(file.is_unchanged() for file in listing.files)
    assert {file.content.open("rb").read() for file in listing.files} == {b"x", b""}
    assert [file.name for file in prefix.landing().below("jobs").scan().files] == ["a.csv"]


def test_what_cannot_be_loaded_is_named(prefix: Prefix, analytics: Connection) -> None:
    """An empty object is refused like an empty file, and one in an unknown folder is unrecognized."""
    landing = prefix.landing()
    prefix.write("elocals_leads/empty.csv", "")
    prefix.write("old stuff/a.csv", leads("1"))
    assert statuses(load(analytics, landing)) == [("elocals_leads/empty.csv", "refused")]
    told = sorted(not_loaded(analytics, landing))
    assert [line.split(":")[0] for line in told] == ["elocals_leads/empty.csv", "old stuff/a.csv"]
    assert "empty file" in told[0] and "unknown source folder" in told[1]
    assert pending(analytics, landing) == []


def test_a_name_that_is_no_path_is_named(prefix: Prefix, through: Proxy) -> None:
    """One object whose name has an empty part keeps the library from listing all, so the sentence names it."""
    prefix.write("jobs/one.csv", "x")
    through.fault = lambda request: lambda status, body: (status, body.replace(b"jobs/one", b"jobs//one"))
    with pytest.raises(LandingUnavailable, match=r"no path \('.*/jobs//one\.csv'.*rename or remove that one"):
        prefix.landing(through=through.url).scan()


def test_ten_thousand_objects(prefix: Prefix, through: Proxy, analytics: Connection) -> None:
    """A tick over 10,000 loaded objects asks for ten pages of the listing, and for nothing else."""

    async def write() -> None:
        store, limit = prefix.store, asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with limit:
                await obstore.put_async(store, f"elocals_leads/{number:05}.csv", leads("1").encode())

        await asyncio.gather(*map(one, range(10_000)))

    asyncio.run(write())
    landing = prefix.landing(through=through.url)
    files = landing.scan().files
    assert [file.name for file in files] == [f"elocals_leads/{number:05}.csv" for number in range(10_000)]
    assert through.count("GET", listings=True) == 10
    analytics.execute(
        """
        INSERT INTO raw.source_files (source, path, sha256, size_bytes, modified_at, etag, declaration_version,
            exported_at, exported_at_from, status)
        SELECT 'elocals_leads', f.path, '', f.size, f.at, f.etag, %s, f.at, 'mtime', 'loaded'
        FROM unnest(%s::text[], %s::bigint[], %s::timestamptz[], %s::text[]) AS f (path, size, at, etag)
        """,
        [
            SOURCES["elocals_leads"].version,
            *map(list, zip(*((f.name, f.size, f.modified_at, f.etag) for f in files), strict=True)),
        ],
    )
    through.requests.clear()
    assert pending(analytics, landing) == []
    assert (through.count("GET", listings=True), len(through.requests)) == (10, 10)


# -- the same content ------------------------------------------------------------------------------------------------


def test_moving_to_a_bucket_makes_no_file_new(
    prefix: Prefix, landing: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `aws s3 sync`, and back again, each file is hashed once, and none is loaded or refused anew."""
    for name in (
        "elocals_leads/a.csv",
        "elocals_leads/é (2).csv",
        "elocals_leads/refused.csv",
        "minutes.csv",
    ):
        content = "who,what\nAnn,talked\n" if name[0] in "m" or "refused" in name else leads(str(len(name)))
        prefix.write(name, content)
        landing.write(name, content, day=1)
    landing.load("elocals_leads")
    before = landing.rows("SELECT path, sha256, status, exported_at FROM raw.source_files ORDER BY path")
    assert len(before) == 4
    hashed = record_calls(monkeypatch, landing_folder, "fingerprint")
    for place in (prefix.landing(), LocalFolder(landing.folder)):
        for count in (4, 0):
            hashed.clear()
            assert names(landing.connection, place) == []
            assert len(hashed) == count
        assert load_source(landing.connection, place, "elocals_leads", timezone=NEW_YORK).files == []
    assert (
        landing.rows("SELECT path, sha256, status, exported_at FROM raw.source_files ORDER BY path") == before
    )


def test_an_object_replaced_within_the_same_second(prefix: Prefix, analytics: Connection) -> None:
    """An object of the same size and the same second is another one if its etag is."""
    landing, cost = prefix.landing(), 10
    while True:
        prefix.write("elocals_leads/a.csv", leads(str(cost)))
        (before,) = landing.scan().files
        load(analytics, landing)
        prefix.write("elocals_leads/a.csv", leads(str(cost + 1)))
        (after,) = landing.scan().files
        # a busy machine may need longer
        if before.modified_ns == after.modified_ns:
            break
        cost += 2
    assert before.size == after.size and before.etag != after.etag
    assert not before.is_unchanged() and after.is_unchanged()
    assert statuses(load(analytics, landing)) == [("elocals_leads/a.csv", "loaded")]
    assert costs(analytics) == [f"{cost + 1}.00"]
    assert pending(analytics, landing) == []


def test_an_etag_is_no_content(prefix: Prefix, analytics: Connection) -> None:
    """The same content under another etag, as after an upload in parts, is not loaded again."""
    content = leads(*["10"] * 20)
    landing = prefix.landing()
    prefix.write("elocals_leads/a.csv", content)
    load(analytics, landing)
    (before,) = landing.scan().files
    obstore.put(prefix.store, "elocals_leads/a.csv", content.encode(), use_multipart=True)
    (after,) = landing.scan().files
    assert before.etag != after.etag
    assert pending(analytics, landing) == []
    (known,) = analytics.execute("SELECT etag FROM raw.source_files")
    assert known == (after.etag,)


@pytest.mark.parametrize("moment", ["before it is hashed", "before it is read", "after it was read"])
def test_an_object_replaced_while_it_is_read(
    moment: str, prefix: Prefix, through: Proxy, analytics: Connection
) -> None:
    """Nothing of an object that was replaced meanwhile is loaded; the next run loads what is there then."""
    prefix.write("elocals_leads/a.csv", leads("10"))
    prefix.write("elocals_leads/b.csv", leads("20").replace("A,", "Z,"))
    at = {
        "before it is hashed": ("GET", 1),
        "before it is read": ("GET", 2),
        "after it was read": ("HEAD", 1),
    }[moment]

    def replace(request: Request) -> None:
        of_a = [r for r in through.requests if r.path.endswith("/a.csv")]
        if (
            request.path.endswith("/a.csv")
            and (request.method, sum(r.method == request.method for r in of_a)) == at
        ):
            prefix.write("elocals_leads/a.csv", leads("99"))

    through.fault = replace
    landing = prefix.landing(through=through.url)
    result = load(analytics, landing)
    assert sorted(statuses(result)) == [("elocals_leads/a.csv", "waiting"), ("elocals_leads/b.csv", "loaded")]
    assert "changed while it was read" in (
        next(f.message for f in result.files if f.status == "waiting") or ""
    )
    assert costs(analytics) == ["20.00"]
    assert names(analytics, landing) == ["elocals_leads/a.csv"]
    assert statuses(load(analytics, landing)) == [("elocals_leads/a.csv", "loaded")]
    assert costs(analytics) == ["99.00", "20.00"]
    assert pending(analytics, landing) == []


def test_an_object_that_goes_while_it_is_read(prefix: Prefix, through: Proxy, analytics: Connection) -> None:
    """An object that is deleted meanwhile is left out, and the others load."""
    prefix.write("elocals_leads/a.csv", leads("10"))
    prefix.write("elocals_leads/b.csv", leads("20"))

    def delete(request: Request) -> None:
        if not request.is_listing and request.path.endswith("/a.csv"):
            prefix.delete("elocals_leads/a.csv")

    through.fault = delete
    assert statuses(load(analytics, prefix.landing(through=through.url))) == [
        ("elocals_leads/b.csv", "loaded")
    ]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_workbooks_are_read_from_any_place(prefix: Prefix, through: Proxy, analytics: Connection) -> None:
    """A workbook needs reading at many places, and is fetched once for its hash and once to be read."""
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (ELOCALS, ("A", "2025-01-05 10:21:17 -0500", "01:10", 12.5, "ok", "")):
        book.active.append(row)
    target = io.BytesIO()
    book.save(target)
    prefix.write("elocals_leads/a.xlsx", target.getvalue())
    assert statuses(load(analytics, prefix.landing(through=through.url))) == [
        ("elocals_leads/a.xlsx", "loaded")
    ]
    assert costs(analytics) == ["12.50"]
    assert (through.count("GET"), through.count("HEAD")) == (2, 1)


def test_a_copy_reads_like_a_file(prefix: Prefix, tmp_path: Path) -> None:
    """What reads an object finds any place in it, with several readers at once, and leaves no file behind."""
    data = os.urandom(300_000)
    prefix.write("a.bin", data)
    (file,) = prefix.landing().scan().files
    content = file.content
    with content.open("rb") as one, content.open("rb") as two:
        assert one.seek(-5, os.SEEK_END) == len(data) - 5 and one.read() == data[-5:] and one.read() == b""
        assert (
            two.read(10) == data[:10] and two.seek(100, os.SEEK_CUR) == 110 and two.read(7) == data[110:117]
        )
        assert one.seek(0) == 0 and one.read() == data
        with pytest.raises(OSError, match="Invalid argument"):
            one.seek(-1)
    assert content.open("rb").read() == data


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [busy, cut, late(0.3)], ids=["busy", "cut off", "slow"])
def test_requests_that_fail_are_repeated(
    fault: Fault, prefix: Prefix, through: Proxy, analytics: Connection
) -> None:
    """A busy server, a connection that breaks and slow answers change neither the tables nor what is told."""
    for number in range(3):
        prefix.write(f"elocals_leads/{number}.csv", leads(*[str(number)] * 5))
    # the first two of every three; the library begins a listing that breaks off anew only where it has not begun
    through.fault = lambda request: (
        fault if len(through.requests) % 3 and not (fault is cut and request.is_listing) else None
    )
    landing = prefix.landing(through=through.url)
    assert [status for _, status in statuses(load(analytics, landing))] == ["loaded"] * 3
    assert costs(analytics) == ["2.00"] * 5
    assert pending(analytics, landing) == []


@pytest.mark.parametrize("fault", [busy, cut], ids=["busy", "cut off"])
@pytest.mark.parametrize("when", ["listing", "reading"])
def test_a_server_that_stays_away_ends_the_run(
    fault: Fault, when: str, prefix: Prefix, through: Proxy, analytics: Connection
) -> None:
    """The run ends with a sentence, not file after file; what was loaded stays, and nothing is refused for it."""
    prefix.write("elocals_leads/a.csv", leads("10"))
    prefix.write("elocals_leads/b.csv", leads("20"))
    through.fault = lambda request: fault if request.is_listing == (when == "listing") else None
    landing = prefix.landing(through=through.url, patience=1)
    with pytest.raises(LandingUnreachable) as raised:
        load(analytics, landing)
    assert str(raised.value).startswith(f"{prefix.url} at {through.url} cannot be reached (")
    assert "check the network" in str(raised.value) and SECRET not in str(raised.value)
    assert analytics.execute("SELECT count(*) FROM raw.source_files").fetchone() == (0,)
    through.fault = lambda request: None
    assert [status for _, status in statuses(load(analytics, landing))] == ["loaded", "loaded"]


def wrong_bucket(prefix: Prefix) -> Bucket:
    return Bucket("s3://no-such-bucket/x", prefix.access, 1)


UNUSABLE: dict[str, tuple[Callable[[Prefix], Bucket], str]] = {
    "wrong secret": (
        lambda prefix: prefix.landing(aws_secret_access_key="wrong-secret"),
        "refuses these credentials (SignatureDoesNotMatch): set AWS_ACCESS_KEY_ID and",
    ),
    "wrong key": (
        lambda prefix: prefix.landing(aws_access_key_id="wrong-key"),
        "refuses these credentials (InvalidAccessKeyId): set AWS_ACCESS_KEY_ID and",
    ),
    "no bucket": (wrong_bucket, "the bucket of s3://no-such-bucket/x does not exist at http"),
    "no server": (
        lambda prefix: prefix.landing(through="http://127.0.0.1:1", patience=1),
        "at http://127.0.0.1:1 cannot be reached (no answer): check the network",
    ),
    "no such host": (
        lambda prefix: prefix.landing(through="http://nowhere.invalid", patience=1),
        "at http://nowhere.invalid cannot be reached (no answer)",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_is_wrong_is_one_sentence(what: str, prefix: Prefix, analytics: Connection) -> None:
    """Wrong credentials, a missing bucket and a missing server are told in a line, without anything secret."""
    make, expected = UNUSABLE[what]
    for ask in (lambda: load(analytics, make(prefix)), lambda: not_loaded(analytics, make(prefix))):
        with pytest.raises(LandingUnavailable) as raised:
            ask()
        told = str(raised.value)
        assert expected in told and "\n" not in told and len(told) < 300
        assert not any(secret in told for secret in (SECRET, KEY, "wrong-secret", "wrong-key", "Signature="))
        # nor in what is printed with it
        assert raised.value.__cause__ is None and raised.value.__suppress_context__
        assert SECRET not in repr(make(prefix))


def test_a_missing_library_is_one_sentence(prefix: Prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the sentence has the command that installs it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(
        LandingUnavailable, match=r"pip install --constraint constraints\.txt --editable '\.\[s3\]'$"
    ):
        prefix.landing().scan()


# -- commands that name files ----------------------------------------------------------------------------------------


def test_files_in_the_bucket_can_be_named(
    prefix: Prefix, analytics_url: str, analytics: Connection, tmp_path: Path
) -> None:
    """check, diff and rebuild take an object by its path below the landing folder or its address, and local files."""
    landing = prefix.landing()
    prefix.write("elocals_leads/a.csv", leads("10"))
    load(analytics, landing)
    prefix.write("elocals_leads/b.csv", leads("11", "NaN"))
    elsewhere = tmp_path / "elocals_leads" / "c.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(leads("12", "13"))
    for named, changed in (
        ("elocals_leads/b.csv", (0, 1, 1)),
        (f"{prefix.url}/elocals_leads/b.csv", (0, 1, 1)),
        (elsewhere, (1, 1, 0)),
    ):
        report = examine(named, timezone=NEW_YORK, landing=landing, connection=analytics)
        assert report.refusal is None and report.database is not None
        counts = report.database
        assert (counts.inserted, counts.updated, counts.quarantined) == changed
        with psycopg.connect(analytics_url, autocommit=True) as asking:
            found = diff_files(asking, landing, [named], timezone=NEW_YORK, start_month=_JANUARY)
        assert [file.result.status for file in found.files] == ["loaded"] and found.differs
    for wrong in (
        "elocals_leads/z.csv",
        "s3://other/elocals_leads/b.csv",
        "../b.csv",
        "/elocals_leads/b.csv",
    ):
        assert "cannot be read" in (examine(wrong, timezone=NEW_YORK, landing=landing).refusal or "")
    load(analytics, landing)
    assert costs(analytics) == ["11.00"]
    without: list[str] = ["b.csv"]
    restored: list[str] = []
    for expected in (["10.00"], ["11.00"]):
        with rebuilt(
            analytics, landing, "elocals_leads", timezone=NEW_YORK, without=without, restored=restored
        ) as result:
            assert result.months
        assert costs(analytics) == expected
        without, restored = [], [f"{prefix.url}/elocals_leads/b.csv"]
    with (
        pytest.raises(CannotRebuild, match=f"no file z.csv in the landing folder {prefix.url}, and none"),
        rebuilt(analytics, landing, "elocals_leads", timezone=NEW_YORK, without=["z.csv"]),
    ):
        pass

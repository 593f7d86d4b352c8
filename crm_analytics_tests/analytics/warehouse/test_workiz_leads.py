"""Leads of the field-service system in the metrics: none by default, and never twice by a channel's rule."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from crm_analytics.analytics.warehouse.explain import explain
from crm_analytics_tests.analytics.model_comparison import refresh_stale

Connection = psycopg.Connection[Any]
MARCH = date(2024, 3, 1)


@pytest.fixture
def leads(analytics: Connection) -> Connection:
    """Six leads of three sources, two of them in April, and one lead of Pro Referral's own export in each month."""
    analytics.execute(
        """
        INSERT INTO raw.workiz_leads (lead_id, created_at, lead_date, status, source)
        VALUES
            ('W1', '2024-03-05', '2024-03-05', 'Open', 'pro  referral'),
            ('W2', '2024-03-05', '2024-03-05', ' PASSED', 'Pro Referral'),
            ('W3', '2024-03-06', '2024-03-06', NULL, 'Pro Referral'),
            ('W4', '2024-03-06', '2024-03-06', 'Canceled', 'Angi'),
            ('W5', '2024-04-01', '2024-04-01', 'Open', 'Pro Referral'),
            ('W6', '2024-04-01', '2024-04-01', 'Open', NULL);
        INSERT INTO raw.proref_leads (lead_id, lead_at, lead_date)
        VALUES ('R1', '2024-03-31', '2024-03-31'), ('R2', '2024-04-01', '2024-04-01')
        """
    )
    refresh_stale(analytics)
    return analytics


def counted(connection: Connection) -> list[tuple[Any, ...]]:
    """Refreshes what is stale; returns the rows of the metrics that have leads: month, source, leads, cost."""
    refresh_stale(connection)
    return connection.execute(
        "SELECT to_char(month, 'MM'), source, leads, cost FROM monthly_metrics ORDER BY month, source"
    ).fetchall()


def choose(
    connection: Connection, source: str, valid_from: str, cost: str = "none", price: Any = None
) -> None:
    """Gives a channel the rule workiz_leads from a month on."""
    connection.execute(
        "INSERT INTO lead_channels (source, valid_from, lead_rule, cost_rule, cost_per_lead)"
        " VALUES (%s, %s, 'workiz_leads', %s, %s)",
        [source, valid_from, cost, price],
    )


def test_without_a_rule_they_change_no_metric(leads: Connection) -> None:
    """They are loaded and shown by source; the metrics have the leads of Pro Referral's own export only."""
    assert counted(leads) == [
        ("03", "Pro Referral", 1, Decimal("20.00")),
        ("04", "Pro Referral", 1, Decimal("20.00")),
    ]
    assert leads.execute(
        "SELECT to_char(month, 'MM'), source, leads, passed, converted, counted FROM reporting.workiz_leads ORDER BY 1, 2"
    ).fetchall() == [
        ("03", "Angi", 1, 0, 0, 0),
        ("03", "Pro Referral", 3, 1, 0, 0),
        ("04", "Pro Referral", 1, 0, 0, 0),
        ("04", "Unattributed", 1, 0, 0, 0),
    ]


def test_rule_counts_what_is_not_passed_from_its_month_on(leads: Connection) -> None:
    """A channel changes from one rule to the other at the first of a month, so each lead counts by one of them."""
    choose(leads, "Pro Referral", "2024-04-01", "per_lead", "15.00")
    choose(leads, "Angi", "2000-01-01")
    assert counted(leads) == [
        ("03", "Angi", 1, Decimal(0)),
        ("03", "Pro Referral", 1, Decimal("20.00")),
        ("04", "Pro Referral", 1, Decimal("15.00")),
    ]
    leads.execute("UPDATE lead_channels SET valid_from = '2024-03-01' WHERE valid_from = '2024-04-01'")
    assert counted(leads) == [
        ("03", "Angi", 1, Decimal(0)),
        ("03", "Pro Referral", 2, Decimal("30.00")),
        ("04", "Pro Referral", 1, Decimal("15.00")),
    ]
    assert leads.execute("SELECT sum(counted) FROM reporting.workiz_leads").fetchone() == (4,)


def test_changes_of_leads_reach_the_metrics(leads: Connection) -> None:
    """Status, source and day of a lead make its months stale, whether it counted before or counts after."""
    choose(leads, "Pro Referral", "2000-02-01")
    assert [(month, n) for month, _, n, _ in counted(leads)] == [("03", 2), ("04", 1)]
    leads.execute("UPDATE raw.workiz_leads SET status = 'Passed' WHERE lead_id = 'W1'")
    assert [(month, n) for month, _, n, _ in counted(leads)] == [("03", 1), ("04", 1)]
    leads.execute("UPDATE raw.workiz_leads SET source = 'Pro Referral' WHERE lead_id IN ('W4', 'W6')")
    assert [(month, n) for month, _, n, _ in counted(leads)] == [("03", 2), ("04", 2)]
    leads.execute("UPDATE raw.workiz_leads SET lead_date = '2024-03-07' WHERE lead_id = 'W5'")
    leads.execute("DELETE FROM raw.workiz_leads WHERE lead_id = 'W6'")
    assert [(month, n) for month, _, n, _ in counted(leads)] == [("03", 3)]


def test_explain_says_why_they_count(leads: Connection) -> None:
    """The words tell them from the leads of Pro Referral's own export."""
    choose(leads, "Pro Referral", "2024-03-01", "per_lead", "15.00")
    refresh_stale(leads)
    for metric, words in (
        (
            "leads",
            ["1: lead of Pro Referral in the field-service system with another status than Passed",
             "1: lead of Pro Referral in the field-service system without a status"],
        ),
        ("cost", ["15.00: 15.00 per lead of Pro Referral"] * 2),
    ):  # fmt: skip
        found = explain(leads, MARCH, metric)
        assert found.is_equal
        assert [(row.kind, row.id) for row in found.rows] == [("lead", "W1"), ("lead", "W3")]
        assert [f"{row.amount}: {row.rule}" for row in found.rows] == words


TWICE = "leads would count twice: Pro Referral counts them by proref_not_passed, and {} by workiz_leads"


@pytest.mark.parametrize("name", ["ProReferral", "pro-referral"])
def test_another_spelling_of_the_channel_is_refused(name: str, leads: Connection) -> None:
    """Two channels for one business would count its leads once by each rule."""
    with pytest.raises(psycopg.errors.CheckViolation, match=TWICE.format(name)) as refused:
        choose(leads, name, "2024-01-01")
    assert refused.value.diag.message_hint == (
        "Give both rules to one channel, each for its own months (valid_from), or only one of them."
    )


def test_an_alias_that_makes_two_channels_one_is_refused(leads: Connection) -> None:
    """Whichever comes first, the rule or the alias; an alias for something else is none of this."""
    choose(leads, "Home Pros", "2024-01-01")
    leads.execute("INSERT INTO channel_aliases VALUES ('home professionals', 'Home Pros')")
    with pytest.raises(psycopg.errors.CheckViolation, match=TWICE.format("Home Pros")):
        leads.execute("UPDATE channel_aliases SET source = 'Home Pros' WHERE source = 'Pro Referral'")
    leads.execute("DELETE FROM lead_channels WHERE source = 'Home Pros'")
    leads.execute("UPDATE channel_aliases SET source = 'Home Pros' WHERE source = 'Pro Referral'")
    with pytest.raises(psycopg.errors.CheckViolation, match=TWICE.format("Home Pros")):
        choose(leads, "Home Pros", "2024-01-01")


def test_rules_of_different_months_are_no_conflict(leads: Connection) -> None:
    """Until one of them ends later, because a row that ended it was deleted."""
    leads.execute(
        "INSERT INTO lead_channels (source, valid_from, lead_rule, cost_rule)"
        " VALUES ('Pro Referral', '2024-01-01', 'none', 'none')"
    )
    choose(leads, "ProReferral", "2024-01-01")
    with pytest.raises(psycopg.errors.CheckViolation, match=TWICE.format("ProReferral")):
        leads.execute("DELETE FROM lead_channels WHERE source = 'Pro Referral' AND valid_from = '2024-01-01'")

"""Customers' reviews: the declaration of a source that exists only in the tests."""

from __future__ import annotations

from crm_analytics.analytics.ingest.sources.declaration import Column, Expectation, Key, Source
from crm_analytics.analytics.ingest.values.column_types import Identifier, Label, Text, When, WholeNumber

REVIEWS = Source(
    name="reviews",
    version=1,
    table="raw.reviews",
    title="reviews by customers",
    description="Reviews by customers, with their stars.",
    columns=(
        Column("review_id", Identifier(), ("Review ID",), required=True, not_null=True),
        Column(
            "reviewed_at", When(), ("Reviewed", "Date"), required=True, not_null=True, date_as="review_date"
        ),
        Column("stars", WholeNumber(), ("Stars", "Rating"), required=True, not_null=True),
        Column("site", Label(), ("Site",)),
        Column("comment", Text(), ("Comment",)),
    ),
    key=Key("review", ("review_id",)),
    date_column="review_date",
    filename_patterns=(r"\breviews?\b",),
    own_headers=("Review ID",),
    foreign_headers=("Lead ID", "Job #"),
    expectation=Expectation(7, 14),
    migration="0007_reviews.sql",
)

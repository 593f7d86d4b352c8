-- Reviews by customers: the migration of a source that exists only in the tests.

CREATE TABLE raw.reviews (
    review_id text PRIMARY KEY CHECK (review_id <> ''),
    reviewed_at timestamptz NOT NULL,
    review_date date NOT NULL,
    stars int NOT NULL,
    site text,
    comment text,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX reviews_review_date ON raw.reviews (review_date);
COMMENT ON TABLE raw.reviews IS 'Reviews by customers, one row per review.';
SELECT analytics.describe('{raw.reviews}', $$
    review_id: The site's id.
    reviewed_at: When the review was written.
    review_date: Local date of reviewed_at.
    stars: One to five.
    site: Where the review was written, as given.
    comment: Text as given.
    file_id: Entry of raw.source_files that last changed the row; NULL for a row written by hand.
    record_no: Record in that file.
    updated_at: When the row was last changed by a load.
$$);

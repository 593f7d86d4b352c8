-- The channels: how sources are spelled, and what counts as a lead and as cost for each. They are data, not code:
-- a new channel is one row here plus its spellings in channel_aliases.

CREATE TABLE analytics.lead_channels (
    source varchar NOT NULL CHECK (source <> ''),
    valid_from date NOT NULL DEFAULT '2000-01-01' CHECK (extract(day FROM valid_from) = 1),
    lead_rule text NOT NULL CHECK (lead_rule IN ('elocals_paid', 'proref_not_passed', 'jobs', 'units', 'none')),
    cost_rule text NOT NULL CHECK (cost_rule IN ('sum_cost', 'per_lead', 'google_spend', 'none')),
    cost_per_lead numeric(10, 2) CHECK (cost_per_lead >= 0 AND cost_per_lead <> 'NaN'),
    lead_segment varchar NOT NULL DEFAULT 'OTHER' CHECK (lead_segment IN ('COD', 'INS', 'OTHER')),
    CONSTRAINT lead_channels_pkey PRIMARY KEY (source, valid_from),
    CONSTRAINT lead_channels_pair CHECK (
        CASE cost_rule
            -- only eLocals' rows carry a cost
            WHEN 'sum_cost' THEN lead_rule = 'elocals_paid'
            WHEN 'per_lead' THEN lead_rule <> 'none'
            WHEN 'google_spend' THEN lead_rule IN ('jobs', 'units', 'none')
            ELSE true
        END
    ),
    CONSTRAINT lead_channels_price CHECK ((cost_rule = 'per_lead') = (cost_per_lead IS NOT NULL))
);
COMMENT ON TABLE analytics.lead_channels IS
    'What counts as a lead and as its cost, by channel. In force for a month: the row with the latest valid_from not '
    'after that month.';

CREATE VIEW analytics.channel_rules AS
SELECT
    source, valid_from, lead(valid_from) OVER (PARTITION BY source ORDER BY valid_from) AS valid_to,
    lead_rule, cost_rule, cost_per_lead, lead_segment
FROM analytics.lead_channels;
COMMENT ON VIEW analytics.channel_rules IS
    'Channel rules with the end of their validity: in force on the days d for which '
    'analytics.in_force(d, valid_from, valid_to) is true.';

SELECT analytics.describe('{analytics.lead_channels, analytics.channel_rules}', $$
    source: The channel's name, as metrics show it.
    valid_from: First day on which the rule is in force, always the first of a month.
    valid_to: First day on which it is no longer in force; NULL while it still is.
    lead_rule: elocals_paid: rows of raw.elocals_leads with cost > 0; proref_not_passed: rows of raw.proref_leads that
        are not Passed; jobs: jobs of this source; units: units of this source; none.
    cost_rule: sum_cost: the leads' own cost; per_lead: cost_per_lead each; google_spend: the month's Google spend;
        none: free.
    cost_per_lead: Dollars per lead, for per_lead; else NULL.
    lead_segment: Segment of leads and cost that do not come with a job.
$$);

CREATE FUNCTION analytics.in_force(day date, valid_from date, valid_to date) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN day >= valid_from AND (valid_to IS NULL OR day < valid_to);
COMMENT ON FUNCTION analytics.in_force IS 'Whether a channel rule of this validity is in force on a day.';

CREATE TABLE analytics.channel_aliases (
    alias_folded text PRIMARY KEY CHECK (alias_folded = raw.fold(alias_folded) AND alias_folded <> ''),
    source varchar NOT NULL CHECK (source <> '')
);
COMMENT ON TABLE analytics.channel_aliases IS
    'Spellings of sources and call flows, folded as by raw.fold, and the channel that each one means.';
SELECT analytics.describe('{analytics.channel_aliases}', $$
    alias_folded: The spelling: trimmed, white space collapsed, lower case.
    source: The channel's name.
$$);

-- These three rules read a table without a source column: two channels would count every row twice.
CREATE FUNCTION analytics.one_channel_per_shared_rule() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    shared record;
BEGIN
    -- two transactions at once would not see each other's row
    PERFORM pg_advisory_xact_lock(hashtextextended('analytics:channel_rules', 0));
    FOR shared IN
        SELECT r.rule, string_agg(DISTINCT r.source, ', ' ORDER BY r.source) AS sources
        FROM analytics.lead_channels c
        CROSS JOIN LATERAL (VALUES (c.lead_rule, c.source), (c.cost_rule, c.source)) AS r (rule, source)
        WHERE r.rule IN ('elocals_paid', 'proref_not_passed', 'google_spend')
        GROUP BY r.rule
        HAVING count(DISTINCT r.source) > 1
    LOOP
        RAISE EXCEPTION 'rule % can belong to one channel only, found: %', shared.rule, shared.sources
            USING ERRCODE = 'check_violation', HINT = 'Its rows would be counted once for each channel.';
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.one_channel_per_shared_rule IS
    'Trigger: refuses a second channel for elocals_paid, proref_not_passed or google_spend.';
CREATE TRIGGER one_channel_per_shared_rule AFTER INSERT OR UPDATE ON analytics.lead_channels
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_channel_per_shared_rule();

INSERT INTO analytics.lead_channels (source, lead_rule, cost_rule, cost_per_lead) VALUES
    ('eLocals', 'elocals_paid', 'sum_cost', NULL),
    ('Pro Referral', 'proref_not_passed', 'per_lead', 20.00),
    ('Google', 'jobs', 'google_spend', NULL),
    ('Rely', 'units', 'none', NULL),
    ('NSA', 'units', 'none', NULL),
    ('Liberty', 'units', 'none', NULL),
    ('Retention', 'jobs', 'none', NULL);

INSERT INTO analytics.channel_aliases (alias_folded, source)
SELECT raw.fold(source) AS alias_folded, source FROM analytics.lead_channels
UNION ALL
VALUES ('googleads', 'Google');

-- The channels: how sources are spelled, and what counts as a lead and as cost for each. Data, not code:
-- a new channel is one row here and its spellings in channel_aliases.

CREATE TABLE analytics.lead_channels (
    source varchar NOT NULL CHECK (source <> ''),
    valid_from date NOT NULL DEFAULT '2000-01-01' CHECK (extract(day FROM valid_from) = 1),
    lead_rule text NOT NULL CHECK (lead_rule IN ('elocals_paid', 'proref_not_passed', 'jobs', 'units', 'none')),
    cost_rule text NOT NULL CHECK (cost_rule IN ('sum_cost', 'per_lead', 'google_spend', 'none')),
    cost_per_lead numeric(10,2) CHECK (cost_per_lead >= 0 AND cost_per_lead <> 'NaN'),
    lead_segment varchar NOT NULL DEFAULT 'OTHER' CHECK (lead_segment IN ('COD', 'INS', 'OTHER')),
    CONSTRAINT lead_channels_pkey PRIMARY KEY (source, valid_from),
    CONSTRAINT lead_channels_pair CHECK (
        CASE cost_rule
            WHEN 'sum_cost' THEN lead_rule = 'elocals_paid' -- only eLocals' rows carry a cost
            WHEN 'per_lead' THEN lead_rule <> 'none'
            WHEN 'google_spend' THEN lead_rule IN ('jobs', 'units', 'none')
            ELSE true
        END
    ),
    CONSTRAINT lead_channels_price CHECK ((cost_rule = 'per_lead') = (cost_per_lead IS NOT NULL))
);
COMMENT ON TABLE analytics.lead_channels IS 'What counts as a lead and as its cost, by channel. In force for a month: the row with the latest valid_from not after that month.';
COMMENT ON COLUMN analytics.lead_channels.source IS 'The channel''s name, as metrics show it.';
COMMENT ON COLUMN analytics.lead_channels.valid_from IS 'First month that the rule holds for (its first day).';
COMMENT ON COLUMN analytics.lead_channels.lead_rule IS 'elocals_paid: rows of raw.elocals_leads with cost > 0; proref_not_passed: rows of raw.proref_leads that are not Passed; jobs: jobs of this source; units: units of this source; none.';
COMMENT ON COLUMN analytics.lead_channels.cost_rule IS 'sum_cost: the leads'' own cost; per_lead: cost_per_lead each; google_spend: the month''s Google spend; none: free.';
COMMENT ON COLUMN analytics.lead_channels.cost_per_lead IS 'Dollars a lead, for per_lead; else NULL.';
COMMENT ON COLUMN analytics.lead_channels.lead_segment IS 'Segment of leads and cost that do not come with a job.';

CREATE TABLE analytics.channel_aliases (
    alias_folded text PRIMARY KEY CHECK (alias_folded = raw.fold(alias_folded) AND alias_folded <> ''),
    source varchar NOT NULL CHECK (source <> '')
);
COMMENT ON TABLE analytics.channel_aliases IS 'Spellings of sources and call flows, folded as raw.fold does, and the channel that each means.';
COMMENT ON COLUMN analytics.channel_aliases.alias_folded IS 'The spelling: trimmed, white space collapsed, lower case.';
COMMENT ON COLUMN analytics.channel_aliases.source IS 'The channel''s name.';

-- These three rules read a table that has no source of its own: two channels would count every row twice.
CREATE FUNCTION analytics.one_channel_per_shared_rule() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    shared record;
BEGIN
    PERFORM pg_advisory_xact_lock(7205119002661003); -- two at once would not see each other's row
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
COMMENT ON FUNCTION analytics.one_channel_per_shared_rule() IS 'Refuses a second channel for elocals_paid, proref_not_passed or google_spend.';
CREATE TRIGGER one_channel_per_shared_rule AFTER INSERT OR UPDATE ON analytics.lead_channels
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_channel_per_shared_rule();

CREATE VIEW analytics.channel_rules AS
SELECT source, valid_from, lead(valid_from) OVER (PARTITION BY source ORDER BY valid_from) AS valid_to,
    lead_rule, cost_rule, cost_per_lead, lead_segment
FROM analytics.lead_channels;
COMMENT ON VIEW analytics.channel_rules IS 'Channel rules with the end of their validity: in force on a day d where valid_from <= d and (valid_to is null or d < valid_to).';
COMMENT ON COLUMN analytics.channel_rules.source IS 'The channel''s name.';
COMMENT ON COLUMN analytics.channel_rules.valid_from IS 'First day that the rule holds.';
COMMENT ON COLUMN analytics.channel_rules.valid_to IS 'First day that it holds no more; NULL while it does.';
COMMENT ON COLUMN analytics.channel_rules.lead_rule IS 'As in lead_channels.';
COMMENT ON COLUMN analytics.channel_rules.cost_rule IS 'As in lead_channels.';
COMMENT ON COLUMN analytics.channel_rules.cost_per_lead IS 'As in lead_channels.';
COMMENT ON COLUMN analytics.channel_rules.lead_segment IS 'As in lead_channels.';

INSERT INTO analytics.lead_channels (source, lead_rule, cost_rule, cost_per_lead) VALUES
    ('eLocals', 'elocals_paid', 'sum_cost', NULL),
    ('Pro Referral', 'proref_not_passed', 'per_lead', 20.00),
    ('Google', 'jobs', 'google_spend', NULL),
    ('Rely', 'units', 'none', NULL),
    ('NSA', 'units', 'none', NULL),
    ('Liberty', 'units', 'none', NULL),
    ('Retention', 'jobs', 'none', NULL);

INSERT INTO analytics.channel_aliases (alias_folded, source)
SELECT raw.fold(source), source FROM analytics.lead_channels
UNION ALL
VALUES ('googleads', 'Google');

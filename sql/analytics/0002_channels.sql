-- The channels: how sources are spelled, and what counts as a lead and as cost for each. They are data, not code:
-- a new channel is one row here plus its other spellings in channel_aliases. docs/decisions/source-names.md

CREATE TABLE analytics.lead_channels (
    source varchar NOT NULL CHECK (source <> ''),
    valid_from date NOT NULL DEFAULT '2000-01-01' CHECK (extract(day FROM valid_from) = 1),
    lead_rule text NOT NULL CHECK (
        lead_rule IN ('elocals_paid', 'proref_not_passed', 'workiz_leads', 'jobs', 'units', 'none')
    ),
    cost_rule text NOT NULL CHECK (cost_rule IN ('sum_cost', 'per_lead', 'google_spend', 'none')),
    cost_per_lead numeric(10, 2) CHECK (cost_per_lead >= 0 AND cost_per_lead <> 'NaN'),
    lead_segment varchar NOT NULL DEFAULT 'OTHER' CHECK (lead_segment IN ('COD', 'INS', 'OTHER')),
    CONSTRAINT lead_channels_pkey PRIMARY KEY (source, valid_from),
    CONSTRAINT lead_channels_pair CHECK (
        CASE cost_rule
            -- only eLocals' rows carry a cost
            WHEN 'sum_cost' THEN lead_rule = 'elocals_paid'
            WHEN 'per_lead' THEN lead_rule <> 'none'
            WHEN 'google_spend' THEN lead_rule IN ('workiz_leads', 'jobs', 'units', 'none')
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
    lead_rule: elocals_paid: rows of raw.elocals_leads, by analytics.is_elocals_lead; proref_not_passed: rows of
        raw.proref_leads, by analytics.is_proref_lead; workiz_leads: rows of raw.workiz_leads with this source, by
        analytics.is_workiz_lead; jobs: jobs of this source; units: units of this source; none.
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

CREATE TABLE analytics.source_names (
    folded text PRIMARY KEY CHECK (folded = raw.fold(folded) AND folded <> ''),
    shown varchar NOT NULL CHECK (shown = raw.tidy(shown) AND shown <> '')
);
COMMENT ON TABLE analytics.source_names IS
    'How sources are shown that are neither an alias nor a channel. A new one gets the spelling in which it first '
    'came; change it with UPDATE analytics.source_names SET shown = ''...'' WHERE folded = ''...''';
SELECT analytics.describe('{analytics.source_names}', $$
    folded: The source as raw.fold has it: trimmed, white space collapsed, lower case.
    shown: The name in metrics and dashboards. Two sources that show the same name are added up.
$$);

-- A name that disappeared would come back in the spelling of a later file: it would change by itself.
CREATE FUNCTION analytics.keep_source_names() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'names of sources are not deleted'
        USING ERRCODE = 'restrict_violation',
            HINT = 'To show a source in another way, UPDATE analytics.source_names SET shown = ...';
END $$;
COMMENT ON FUNCTION analytics.keep_source_names IS 'Trigger: refuses to delete names of sources.';
CREATE TRIGGER keep_source_names BEFORE DELETE OR TRUNCATE ON analytics.source_names
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.keep_source_names();

CREATE VIEW analytics.spellings AS
SELECT DISTINCT ON (s.folded) s.folded, s.source
FROM (
    SELECT alias_folded AS folded, source, 1 AS precedence FROM analytics.channel_aliases
    UNION ALL
    SELECT raw.fold(typed.name), typed.name, 2
    FROM (
        SELECT source AS name FROM analytics.lead_channels
        UNION ALL
        SELECT source FROM analytics.channel_aliases
        UNION ALL
        SELECT shown FROM analytics.source_names WHERE raw.fold(shown) <> folded
    ) typed
    UNION ALL
    SELECT folded, shown, 3 FROM analytics.source_names
) s
ORDER BY s.folded, s.precedence;
COMMENT ON VIEW analytics.spellings IS
    'Every known spelling of a source and the name that it means: by its alias; else as a channel, an alias or another '
    'source spells the same name; else as analytics.source_names shows it. Jobs, calls and targets are named by it.';
SELECT analytics.describe('{analytics.spellings}', $$
    folded: The spelling: trimmed, white space collapsed, lower case.
    source: The name that metrics and dashboards show.
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

-- The field-service system has the leads of Pro Referral, too. One channel has one rule for a month; but two channels
-- could be the same one, by an alias or by a name that is written in another way.
CREATE FUNCTION analytics.one_count_per_lead() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    twice record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('analytics:channel_rules', 0));
    SELECT p.source AS exported, w.source AS entered INTO twice
    FROM analytics.channel_rules p
    JOIN analytics.channel_rules w
        ON w.lead_rule = 'workiz_leads' AND w.valid_from < coalesce(p.valid_to, 'infinity')
            AND p.valid_from < coalesce(w.valid_to, 'infinity')
    JOIN analytics.spellings s
        ON s.source = w.source
            AND regexp_replace(s.folded, '[^[:alnum:]]', '', 'g')
            = regexp_replace(raw.fold(p.source), '[^[:alnum:]]', '', 'g')
    WHERE p.lead_rule = 'proref_not_passed'
    ORDER BY p.source, w.source
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'leads would count twice: % counts them by proref_not_passed, and % by workiz_leads',
            twice.exported, twice.entered
            USING ERRCODE = 'check_violation',
                HINT = 'Give both rules to one channel, each for its own months (valid_from), or only one of them.';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.one_count_per_lead IS
    'Trigger: refuses a channel that counts by workiz_leads the leads which another one counts by proref_not_passed in '
    'the same months.';
CREATE TRIGGER one_count_per_lead AFTER INSERT OR UPDATE OR DELETE ON analytics.lead_channels
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_count_per_lead();
CREATE TRIGGER one_count_per_lead AFTER INSERT OR UPDATE OR DELETE ON analytics.channel_aliases
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_count_per_lead();
CREATE TRIGGER one_count_per_lead AFTER UPDATE ON analytics.source_names
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_count_per_lead();

-- Names that differ only in their spelling would be two sources in every table and chart, and rules apply by name.
-- Loads cannot cause this: what people typed comes before what a file has.
CREATE FUNCTION analytics.one_spelling_per_name() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    spelled text;
BEGIN
    IF pg_trigger_depth() > 1 THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('analytics:channel_rules', 0));
    FOR spelled IN
        SELECT string_agg(DISTINCT n.source, ', ' ORDER BY n.source)
        FROM (SELECT source FROM analytics.spellings UNION ALL SELECT source FROM analytics.lead_channels) n
        GROUP BY raw.fold(n.source)
        HAVING count(DISTINCT n.source) > 1
    LOOP
        RAISE EXCEPTION 'one name is spelled in two ways: %', spelled
            USING ERRCODE = 'check_violation',
                HINT = 'Spell it alike in analytics.lead_channels, channel_aliases (source) and source_names (shown).';
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.one_spelling_per_name IS
    'Trigger: refuses a name of a source that differs from another only in capitals or white space.';
CREATE TRIGGER one_spelling_per_name AFTER INSERT OR UPDATE ON analytics.lead_channels
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_spelling_per_name();
CREATE TRIGGER one_spelling_per_name AFTER INSERT OR UPDATE ON analytics.channel_aliases
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_spelling_per_name();
CREATE TRIGGER one_spelling_per_name AFTER INSERT OR UPDATE ON analytics.source_names
    FOR EACH STATEMENT EXECUTE FUNCTION analytics.one_spelling_per_name();

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

-- Names whose capitals a first spelling often misses. The first one is what jobs without a source are shown under.
INSERT INTO analytics.source_names (folded, shown)
SELECT raw.fold(name) AS folded, name
FROM unnest(ARRAY[
    'Unattributed', 'Angi', 'Angie''s List', 'BBB', 'Bing', 'Bing Ads', 'Craigslist', 'Facebook', 'Facebook Ads',
    'Google Ads', 'Google Guaranteed', 'Google Local Services', 'Google LSA', 'Google Maps', 'Google My Business',
    'Home Depot', 'HomeAdvisor', 'Instagram', 'LinkedIn', 'Networx', 'Nextdoor', 'Porch', 'TikTok', 'Thumbtack', 'Yelp',
    'YouTube'
]) AS name;

-- The postgres image runs this once, on an empty volume. It creates three databases, each with its own owner (not a
-- superuser), and every role that their dumps mention, so that dumps can be restored. The environment has the passwords.
\set ON_ERROR_STOP on
\getenv analytics_password ANALYTICS_DB_PASSWORD
\getenv crm_password CRM_DB_PASSWORD
\getenv dagster_password DAGSTER_DB_PASSWORD

-- Grafana forwards any SQL that a viewer types. Large objects bypass all grants, and anyone's advisory lock can make
-- migrations and loads wait. So only a database's owner may use both. New databases copy this from template1.
\connect template1
SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', oid::regprocedure),
    format('GRANT EXECUTE ON FUNCTION %s TO pg_database_owner', oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
    AND (proname ~ '^pg_(try_)?advisory_(xact_)?lock' OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea'))
\gexec
\connect postgres

CREATE ROLE analytics_owner LOGIN CREATEROLE PASSWORD :'analytics_password';
CREATE ROLE crm_owner LOGIN CREATEROLE PASSWORD :'crm_password';
CREATE ROLE dagster_owner LOGIN PASSWORD :'dagster_password';

CREATE DATABASE analytics OWNER analytics_owner;
CREATE DATABASE crm OWNER crm_owner;
CREATE DATABASE dagster OWNER dagster_owner;

-- The migrations set these roles up; no owner may act as them.
CREATE ROLE grafana_reader LOGIN;
CREATE ROLE crm_rpc;
CREATE ROLE crm_app;
GRANT grafana_reader TO analytics_owner, crm_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
GRANT crm_rpc, crm_app TO crm_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;

REVOKE ALL ON DATABASE analytics, crm, dagster, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE analytics, crm TO grafana_reader;

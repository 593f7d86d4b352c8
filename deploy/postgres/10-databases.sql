-- Run once by the postgres image on an empty volume: three databases, each with an owner of its own, who is no
-- superuser, and Grafana's role. Passwords come from the environment.
\set ON_ERROR_STOP on
\getenv analytics_password ANALYTICS_DB_PASSWORD
\getenv crm_password CRM_DB_PASSWORD
\getenv dagster_password DAGSTER_DB_PASSWORD

CREATE ROLE analytics_owner LOGIN CREATEROLE PASSWORD :'analytics_password';
CREATE ROLE crm_owner LOGIN CREATEROLE PASSWORD :'crm_password';
CREATE ROLE dagster_owner LOGIN PASSWORD :'dagster_password';

CREATE DATABASE analytics OWNER analytics_owner;
CREATE DATABASE crm OWNER crm_owner;
CREATE DATABASE dagster OWNER dagster_owner;

-- Both migrations set it up for their database; neither may act as it.
CREATE ROLE grafana_reader LOGIN;
GRANT grafana_reader TO analytics_owner, crm_owner WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;

REVOKE ALL ON DATABASE analytics, crm, dagster FROM PUBLIC;
GRANT CONNECT ON DATABASE analytics, crm TO grafana_reader;

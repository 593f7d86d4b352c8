"""Tests against real PostgreSQL: one embedded server per test run, one fresh database per test."""

import os

os.environ["CRM_ANALYTICS_ENV_FILE"] = (
    os.devnull
)  # before anything reads settings: never the developer's databases

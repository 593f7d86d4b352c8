"""Tests of analytics.warehouse."""

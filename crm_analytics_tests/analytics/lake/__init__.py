"""Tests of the open lake."""

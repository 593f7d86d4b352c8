"""Tests of the demo: the sample exports and the CRM's activity."""

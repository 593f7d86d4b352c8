"""Grafana dashboards as code: what they show, their JSON files, and what can be checked without a Grafana."""

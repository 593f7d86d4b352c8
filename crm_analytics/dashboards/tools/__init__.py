"""Tools for developers only: the dashboards' lint, previews, and Grafana's rules in Python."""

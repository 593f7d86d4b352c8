"""Tools for developers of dashboards: lint, previews, and Grafana's rules in Python."""

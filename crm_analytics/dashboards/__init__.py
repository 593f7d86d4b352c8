"""The Grafana dashboards as code: boards, panels, their JSON files, and the role that reads the databases."""

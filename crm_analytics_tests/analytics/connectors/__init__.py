"""Connectors against servers on this machine that play the services, with all their oddities."""

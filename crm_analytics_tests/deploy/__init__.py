"""Tests of the deployment: the compose file, and its services run as processes of this machine."""

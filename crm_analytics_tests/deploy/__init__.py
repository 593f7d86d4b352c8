"""Tests of the deployment: the compose file, and its processes run on this machine."""

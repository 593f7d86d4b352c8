"""Tests of the assembly: definitions, checks, sensors, schedules, and everything running together."""

"""Kills loads and refreshes at random moments, and compares the tables with those of an undisturbed run."""

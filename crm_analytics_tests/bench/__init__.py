"""Tests of the benchmark: that it measures what its page says."""

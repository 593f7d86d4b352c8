"""The benchmark behind `make bench`: every line compares a measurement with a named baseline of the same run."""

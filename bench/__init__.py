"""The benchmark behind `make bench`. Every line compares a measurement with a named baseline of the same run."""

"""What `make bench` measures: every line is a ratio to a named baseline of the same run (issue 2, "Speed and size")."""

"""Sample data for `make demo`: written as files, loaded like anybody's exports."""

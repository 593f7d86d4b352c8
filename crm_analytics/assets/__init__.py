"""Software-defined assets: thin, each calls the package that does the work."""

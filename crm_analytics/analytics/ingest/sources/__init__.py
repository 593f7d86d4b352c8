"""One declaration per source: columns, key, date, derivation, file patterns."""

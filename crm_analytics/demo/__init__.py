"""Sample data for `make demo`: export files of an invented repair business, and activity in the CRM."""

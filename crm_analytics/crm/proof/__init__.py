"""Proves that the CRM's guards hold: invariants over the rows, attacks, and the seals on the audit log."""

"""Proves that the CRM's guards hold: manifest, invariants, attacks, audit seals."""

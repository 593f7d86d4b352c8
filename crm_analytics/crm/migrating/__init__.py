"""Brings a CRM database to the newest schema, adopting an existing one first."""

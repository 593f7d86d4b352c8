"""Asks services for data, and writes what they return into the landing folder as complete files."""

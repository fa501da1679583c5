"""Measurements beside plain loops; the tables are in RESULTS.md."""

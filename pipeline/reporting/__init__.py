"""The report's page and its plots."""

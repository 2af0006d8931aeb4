"""Dagster's view of ingestion: thin wrappers, no logic."""

"""Logs, metrics and samples of running jobs."""

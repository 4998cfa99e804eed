"""Real parts together: processes, files, libraries."""

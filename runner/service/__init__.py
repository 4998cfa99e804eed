"""The use cases, one verb a file; the API calls these and nothing below."""

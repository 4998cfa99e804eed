"""The command line: it parses, asks the runner and prints; it never decides."""

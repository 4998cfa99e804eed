"""The turn: load, decide, apply; and the threads that feed it."""

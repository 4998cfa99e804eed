"""Orders of the queue, one module each."""

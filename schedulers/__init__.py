"""Who runs next, on which devices: pure functions over a snapshot."""

"""Places that trees are written to over connections of our own, one module a kind."""

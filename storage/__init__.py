"""Bytes in, bytes out: digests, trees, leases and the roots it is given."""

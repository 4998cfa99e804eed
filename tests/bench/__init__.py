"""The product beside its peers, in one run: `python -m tests.bench` measures DESIGN 5 and writes docs/speed.md."""

"""A fake NVIDIA driver library in C, how to build it, and the box it describes."""

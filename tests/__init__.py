"""The suite; nothing in it leaves the machine."""

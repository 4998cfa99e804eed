"""Stand-ins at the ports, one folder each; nothing of ours is replaced by them."""

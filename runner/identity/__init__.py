"""Who is asking, and how secrets are kept."""

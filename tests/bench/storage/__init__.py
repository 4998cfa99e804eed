"""How fast bytes come in, beside the tools that people use for it today."""

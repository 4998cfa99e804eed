"""The words of the product and its rules, with no I/O at all."""

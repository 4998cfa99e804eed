"""What a user does, from the command line of a real private runner to its end."""

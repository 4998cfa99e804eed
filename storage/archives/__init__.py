"""Reading archives: their names and links, their bytes, their two families of formats; nothing here writes a file."""

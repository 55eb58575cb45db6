"""How ranks are chosen: one policy a file."""

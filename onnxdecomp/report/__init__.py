"""What a conversion did, as a table, as JSON."""

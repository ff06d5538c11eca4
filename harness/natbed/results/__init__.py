"""What a run leaves: one typed record and its evidence."""

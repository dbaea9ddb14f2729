"""What a run leaves: records, store, clock."""

"""What lies on disk, or is generated, turned into records and batches."""

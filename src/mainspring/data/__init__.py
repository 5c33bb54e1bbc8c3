"""What is learned from: reading, cleaning, deduplicating, versioning, packing and loading documents."""

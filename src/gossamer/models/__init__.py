"""Models, one file each, readable alone. Layer 6."""

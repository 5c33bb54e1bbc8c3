"""Products built from the rooms below; the sub-rooms never see each other."""

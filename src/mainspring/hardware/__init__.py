"""What machines are: peaks, links, health, power. The only room that names a vendor."""

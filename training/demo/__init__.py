"""The world of the demo model and what the published pack needs to load its files."""

"""The example workflows, one file a technique; each file lists its own in WORKFLOWS."""

"""The illustrated demo world: scenes of drawn things with exact ground truth, and how they are painted."""

"""Golden figures: what the code computes today, so that a change of any figure is seen and explained."""

"""Search for the numbers of an ablate spec, and the dial: one direction at every strength."""

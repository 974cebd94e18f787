"""What the models of an architecture have in common, whichever family they are."""

"""Model families: one file for each, and what they share."""

"""Model families: what is particular to each kind of pipeline."""

"""Which models are served, which are loaded, and what memory they take."""

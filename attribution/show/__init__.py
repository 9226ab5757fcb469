"""Output for people: listings, tables, figures, pages."""

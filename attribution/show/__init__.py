"""What people look at: listings, tables, figures, pages."""

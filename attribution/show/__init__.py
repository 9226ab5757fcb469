"""Listings, tables, figures and reports."""

"""Trained models to try things on: fetched by pin, never kept in the repository."""

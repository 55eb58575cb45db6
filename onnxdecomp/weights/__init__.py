"""The same layer with other numbers: factorizations fitted to data, and what is refitted in closed form."""

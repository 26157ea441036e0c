"""Client library of Cloister."""

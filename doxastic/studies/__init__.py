"""Studies: memories x tasks x seeds, trained, evaluated, compared and reported."""

"""Stage 04: the diagnoses of all models side by side."""

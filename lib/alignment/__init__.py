"""Stage 06: moral latents tuned toward the human vectors, and the arms that control for it."""

"""Stage 05: sparse autoencoders: model, training, moral latents, files."""

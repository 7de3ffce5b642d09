"""Sparse autoencoders: model, training, moral latents, alignment, files."""

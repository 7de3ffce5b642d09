"""Stage 03: the four analyses of one model, their controls and the decisions: arrays in, tidy frames out, no files."""

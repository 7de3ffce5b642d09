"""The four analyses of the paper and their controls: arrays in, tidy frames out, no files."""

"""Stage 01: Social-Chemistry-101 becomes ten-dimensional moral vectors, beside the human ceiling and the published counts."""

"""Stage 02: models are opened, read through nnsight and pooled into a store on disk."""

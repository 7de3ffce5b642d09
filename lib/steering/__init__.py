"""Stage 07: interventions in the residual stream while a model answers, their receipts and their cost."""

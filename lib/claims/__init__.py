"""Stage 09: the ledger of the paper's claims, and the evidence of a run for each."""

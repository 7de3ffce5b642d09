"""How any stage runs: its parameters, its directory and identity, its files and what the machine has."""

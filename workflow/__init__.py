"""The engine's side: what plans, runs and reports the stages. Nothing here decides a number; nothing in ``lib/`` imports it."""

"""Recurrence to static graph: capture, unrolling and lowering passes."""

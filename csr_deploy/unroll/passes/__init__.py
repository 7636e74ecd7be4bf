"""Lowering passes: pure functions from graph to graph, each leaving the function unchanged."""

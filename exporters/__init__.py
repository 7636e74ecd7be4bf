"""Exporters: from a static graph to a model file. Nothing registers on import; `targets.py` is the table."""

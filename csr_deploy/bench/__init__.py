"""Measures networks against their backbone. Runs on the device: nothing here imports torch or an exporter."""

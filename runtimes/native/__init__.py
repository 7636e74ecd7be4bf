"""The native target's runtime: a network compiled to a shared library, loaded by ctypes."""

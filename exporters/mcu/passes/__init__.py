"""Passes of the microcontroller compiler, one a file; none changes the integers that are computed."""

"""The native target: the C of the mcu target as a shared library for Linux boards."""

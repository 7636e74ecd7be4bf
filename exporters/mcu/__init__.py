"""C code for microcontrollers: from a quantised .tflite file to a self-contained C99 library."""

"""Other people's compilers behind this project's `model.h`, so that all are measured alike."""

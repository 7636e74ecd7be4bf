"""TensorRT and TensorRT for RTX: building engines, keeping them beside their model, running them."""

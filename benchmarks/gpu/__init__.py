"""What a GPU does with the training core: run it as `python -m benchmarks.gpu`."""

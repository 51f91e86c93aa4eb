"""introspect-ray: self-explanation training with online relabelling, distributed with Ray."""

__version__ = "0.1.0"

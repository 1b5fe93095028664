"""The runtime's kernels inside other frameworks. Nothing is registered by importing."""

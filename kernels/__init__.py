"""Recurrent kernels: tensors in, tensors out."""

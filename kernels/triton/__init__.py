"""The GPU backend: kernels in Triton, for CUDA tensors, or for CPU tensors in its interpreter."""

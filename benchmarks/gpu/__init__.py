"""Speed, memory and errors of the Triton kernels on one GPU; run by `kernels.py --device cuda`."""

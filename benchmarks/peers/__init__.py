"""Peers written for the benchmarks."""

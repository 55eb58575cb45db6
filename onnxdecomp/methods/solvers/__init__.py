"""Numerical solvers behind the methods: arrays in, factors out, no knowledge of layers."""

"""Runs of payments as columns: arrays of one length that kernels work on."""

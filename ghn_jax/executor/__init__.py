"""Runs any architecture of DeepNets-1M without compiling it."""

"""DeepNets-1M: architectures by split, lowered to data, and the files in which they are kept."""

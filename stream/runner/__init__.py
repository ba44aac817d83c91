"""One partition without I/O: origins, chain, epochs, checkpoints."""

"""All the I/O of the live way: Faust, fetching, RocksDB, snapshots, producing."""

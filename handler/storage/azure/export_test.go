package azure

// BlockSize is what a Config gives to content of that size.
func BlockSize(c Config, size int64) int64 { return c.blockSize(size) }

// BlockID names a block.
func BlockID(n int, sum uint64) string { return blockID(n, sum) }

package s3

// PartSize is what a Config gives to content of that size.
func PartSize(c Config, size int64) int64 { return c.partSize(size) }

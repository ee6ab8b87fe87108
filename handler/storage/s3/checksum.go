package s3

import (
	"crypto/md5" //nolint:gosec // of parts that are there already; it is what ETags are
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc32"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// sums are the checksums of an object or a part as the other side gives them, in base64.
type sums struct{ crc32c, crc32, sha256 *string }

// text is the one that is there, after its name.
func (s sums) text() string {
	for _, c := range []struct {
		name string
		sum  *string
	}{{"crc32c", s.crc32c}, {"crc32", s.crc32}, {"sha256", s.sha256}} {
		if aws.ToString(c.sum) != "" {
			return c.name + ":" + *c.sum
		}
	}
	return ""
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// algorithm is one of checksums; nil for none.
type algorithm struct {
	name string
	kind types.ChecksumAlgorithm
	hash func() hash.Hash
}

func (c Config) algorithm() *algorithm {
	switch c.Checksum {
	case "none":
		return nil
	case "crc32":
		return &algorithm{"crc32", types.ChecksumAlgorithmCrc32, func() hash.Hash { return crc32.NewIEEE() }}
	case "sha256":
		return &algorithm{"sha256", types.ChecksumAlgorithmSha256, sha256.New}
	}
	return &algorithm{"crc32c", types.ChecksumAlgorithmCrc32c, func() hash.Hash { return crc32.New(castagnoli) }}
}

// of returns the checksum of b in base64, nil without an algorithm.
func (a *algorithm) of(b []byte) *string {
	if a == nil {
		return nil
	}
	h := a.hash()
	h.Write(b)
	return aws.String(base64.StdEncoding.EncodeToString(h.Sum(nil)))
}

// put says where in a request a checksum goes.
func (a *algorithm) put(sum *string, toCRC32C, toCRC32, toSHA256 **string) {
	if a == nil {
		return
	}
	switch a.name {
	case "crc32c":
		*toCRC32C = sum
	case "crc32":
		*toCRC32 = sum
	case "sha256":
		*toSHA256 = sum
	}
}

// in is the checksum of this algorithm among those that came; "" without.
func (a *algorithm) in(s sums) string {
	if a == nil {
		return ""
	}
	switch a.name {
	case "crc32":
		return aws.ToString(s.crc32)
	case "sha256":
		return aws.ToString(s.sha256)
	}
	return aws.ToString(s.crc32c)
}

// composite is the checksum of a multipart upload: of its parts' checksums, and how many they are.
func (a *algorithm) composite(parts []types.CompletedPart) string {
	if a == nil {
		return ""
	}
	h := a.hash()
	for _, p := range parts {
		raw, err := base64.StdEncoding.DecodeString(a.in(sums{p.ChecksumCRC32C, p.ChecksumCRC32, p.ChecksumSHA256}))
		if err != nil || len(raw) == 0 {
			return ""
		}
		h.Write(raw)
	}
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(h.Sum(nil)), len(parts))
}

// holds reports whether a part that the other side has is b.
func (a *algorithm) holds(p types.Part, b []byte, sum *string) bool {
	if aws.ToInt64(p.Size) != int64(len(b)) {
		return false
	}
	if theirs := a.in(sums{p.ChecksumCRC32C, p.ChecksumCRC32, p.ChecksumSHA256}); theirs != "" {
		return theirs == aws.ToString(sum)
	}
	digest := md5.Sum(b) //nolint:gosec // see above
	return strings.EqualFold(strings.Trim(aws.ToString(p.ETag), `"`), hex.EncodeToString(digest[:]))
}

package track

import (
	"encoding/hex"
	"strconv"
	"strings"

	"vhdfs/ops"
)

// idPrefix begins every id, as in those that Hyper-V gives.
const idPrefix = "rctX:"

// formatID is an id as text: the groups of a GUID and eight hexadecimal digits,
// with colons between.
func formatID(session ops.GUID, interval uint32) string {
	n := strconv.FormatUint(uint64(interval), 16)
	return idPrefix + strings.ReplaceAll(session.String(), "-", ":") + ":" + strings.Repeat("0", 8-len(n)) + n
}

// parseID reads what formatID writes, in any case.
func parseID(s string) (session ops.GUID, interval uint32, err error) {
	bad := func() (ops.GUID, uint32, error) {
		return ops.GUID{}, 0, ops.Errorf(ops.ErrUsage, ops.StatusTrackingID,
			"id %q: want rctX:GUID:NUMBER with colons, as tracking answers it", s)
	}
	const digits = 36 + 1 + 8
	if len(s) != len(idPrefix)+digits || !strings.EqualFold(s[:len(idPrefix)], idPrefix) {
		return bad()
	}
	rest := s[len(idPrefix):]
	if rest[36] != ':' || strings.Contains(rest, "-") {
		return bad()
	}
	if session, err = ops.ParseGUID(strings.ReplaceAll(rest[:36], ":", "-")); err != nil {
		return bad()
	}
	n, err := hex.DecodeString(rest[37:])
	if err != nil {
		return bad()
	}
	return session, uint32(n[0])<<24 | uint32(n[1])<<16 | uint32(n[2])<<8 | uint32(n[3]), nil
}

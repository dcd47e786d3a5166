package ops

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"strings"
)

// GUID is an id as bytes in the order of its text form (RFC 4122). VHDX stores
// the first three fields little-endian: see [GUIDFromLE]; VHD stores this order.
type GUID [16]byte

// NewGUID makes a random (version 4) id.
func NewGUID() GUID {
	var g GUID
	_, _ = rand.Read(g[:]) // never fails: crypto/rand ends the program instead
	g[6] = g[6]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g
}

// GUIDFromLE reads the 16 bytes of Microsoft's mixed-endian layout.
func GUIDFromLE(b []byte) GUID {
	var g GUID
	binary.BigEndian.PutUint32(g[0:], binary.LittleEndian.Uint32(b[0:]))
	binary.BigEndian.PutUint16(g[4:], binary.LittleEndian.Uint16(b[4:]))
	binary.BigEndian.PutUint16(g[6:], binary.LittleEndian.Uint16(b[6:]))
	copy(g[8:], b[8:16])
	return g
}

// PutLE writes the id in Microsoft's mixed-endian layout.
func (g GUID) PutLE(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], binary.BigEndian.Uint32(g[0:]))
	binary.LittleEndian.PutUint16(b[4:], binary.BigEndian.Uint16(g[4:]))
	binary.LittleEndian.PutUint16(b[6:], binary.BigEndian.Uint16(g[6:]))
	copy(b[8:16], g[8:])
}

// IsZero tells whether all bytes are 0.
func (g GUID) IsZero() bool { return g == GUID{} }

// String is the lower-case text form without braces.
func (g GUID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], g[0:4])
	hex.Encode(b[9:13], g[4:6])
	hex.Encode(b[14:18], g[6:8])
	hex.Encode(b[19:23], g[8:10])
	hex.Encode(b[24:36], g[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText is the upper-case text form without braces, as the service
// prints ids; a zero id is the empty text.
func (g GUID) MarshalText() ([]byte, error) {
	if g.IsZero() {
		return nil, nil
	}
	return []byte(strings.ToUpper(g.String())), nil
}

// UnmarshalText reads what [GUID.MarshalText] writes.
func (g *GUID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*g = GUID{}
		return nil
	}
	id, err := ParseGUID(string(b))
	if err == nil {
		*g = id
	}
	return err
}

// ParseGUID reads the text form in any case, with or without braces.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	t := s
	if len(t) == 38 && t[0] == '{' && t[37] == '}' {
		t = t[1:37]
	}
	if len(t) != 36 || t[8] != '-' || t[13] != '-' || t[18] != '-' || t[23] != '-' {
		return g, Errorf(ErrUsage, 0, "id %q is not a GUID", s)
	}
	if _, err := hex.Decode(g[:], []byte(t[0:8]+t[9:13]+t[14:18]+t[19:23]+t[24:])); err != nil {
		return GUID{}, Errorf(ErrUsage, 0, "id %q is not a GUID", s)
	}
	return g, nil
}

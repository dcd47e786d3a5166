package hostile

import (
	"testing"

	"vhdfs/test/hostile/folder"
)

// disc is a small ISO 9660 image, then changed.
func disc(change func(b, primary []byte)) folder.Raw {
	b := make([]byte, 40*2048)
	pvd := b[16*2048:]
	copy(pvd, "\x01CD001\x01")
	copy(pvd[40:], "LABEL                           ")
	copy(pvd[80:], le32(40))
	copy(pvd[84:], be32(40))
	copy(pvd[120:], []byte{1, 0, 0, 1, 1, 0, 0, 1, 0, 8, 8, 0})
	copy(b[17*2048:], "\xffCD001\x01")
	if change != nil {
		change(b, pvd)
	}
	return b
}

// Of a disc only its descriptors are read, and its bytes are shown whatever they
// say: nothing loops, and nothing is allocated by their numbers.
func TestH02Discs(t *testing.T) {
	var family []row
	for _, c := range []struct {
		name   string
		change func(b, pvd []byte)
		odd    []string
	}{
		{"as it should be", nil, nil},
		{"of 2^32-1 sectors", func(_, pvd []byte) { copy(pvd[80:], le32(1<<32-1)); copy(pvd[84:], be32(1<<32-1)) }, []string{"iso.truncated"}},
		{"of no sectors", func(_, pvd []byte) { copy(pvd[80:], make([]byte, 8)) }, nil},
		{"sectors of 0 bytes", func(_, pvd []byte) { copy(pvd[128:], make([]byte, 4)) }, nil},
		{"sectors of 65,535 bytes", func(_, pvd []byte) { copy(pvd[128:], "\xff\xff\xff\xff") }, []string{"iso.truncated"}},
		{"descriptors without an end", func(b, pvd []byte) {
			for at := 17 * 2048; at < len(b); at += 2048 {
				copy(b[at:at+2048], pvd[:2048])
			}
		}, nil},
		{"label of control characters", func(_, pvd []byte) { copy(pvd[40:], "\x1b[2J\n\r\x00%n") }, nil},
		{"UDF with an anchor that leads nowhere", func(b, _ []byte) {
			copy(b[17*2048:], "\x00BEA01\x01")
			copy(b[18*2048:], "\x00NSR02\x01")
			copy(b[19*2048:], "\x00TEA01\x01")
			copy(b[len(b)-2048:], "\x02\x00\x02\x00")
			copy(b[len(b)-2048+16:], le32(1<<32-1))
			copy(b[len(b)-2048+20:], le32(1<<32-1))
		}, nil},
		{"UDF without an end", func(b, _ []byte) {
			copy(b[16*2048:], "\x00BEA01\x01")
			for at := 17 * 2048; at < len(b); at += 2048 {
				copy(b[at:], "\x00NSR03\x01")
			}
		}, nil},
	} {
		file := disc(c.change)
		family = append(family, row{name: c.name, file: file, want: guest(file), readOnly: "ISO", odd: c.odd})
	}
	rows(t, "disk.iso", family)
}

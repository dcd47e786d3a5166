package crash

import (
	"encoding/binary"
	"hash/crc32"
	"io"

	"vhdfs/ops"
)

// toy is a disk with a redo log, there to test the engine: its syncs are known
// to be needed, and bug breaks it in a known way.
//
//	0        log: one entry, an index with a CRC and whole sectors
//	toyData  the disk
type toy struct {
	f     ops.File
	dirty map[int64][]byte // by sector; what the log holds is here as well
	write bool
	log   bool // dirty is what the log holds: it must reach the disk before the log changes
	bug   string
}

const (
	toySize  = 8 * 4096
	toyBlock = 4096
	toySlots = 16 // sectors of one log entry
	toyLog   = (1 + toySlots) * sector
	toyData  = toyLog
)

func toyFormat(bug string) *ops.Format {
	return &ops.Format{
		Name: "toy", Extensions: []string{".toy"},
		Create: func(f ops.File, _ ops.CreateSpec) error {
			// No holes: what the log holds stands in none of them.
			if err := f.Allocate(0, toyData+toySize); err != nil {
				return err
			}
			return f.Sync("toy.create")
		},
		Open: func(f ops.File, o ops.OpenOptions) (ops.Layer, error) {
			t := &toy{f: f, dirty: map[int64][]byte{}, write: o.Write, bug: bug}
			return t, t.load()
		},
	}
}

// load reads the log: its entry counts when it is whole.
func (t *toy) load() error {
	b := make([]byte, toyData)
	if _, err := t.f.ReadAt(b, 0); err != nil {
		return err
	}
	entry := b
	n := binary.BigEndian.Uint64(entry[8:])
	if n > toySlots || n == 0 {
		return nil
	}
	sum := crc32.ChecksumIEEE(append(append([]byte(nil), entry[:sector-4]...), entry[sector:(1+n)*sector]...))
	if sum != binary.BigEndian.Uint32(entry[sector-4:]) && t.bug != "no crc" {
		return nil
	}
	for i := range n {
		at := int64(binary.BigEndian.Uint64(entry[16+8*i:]))
		t.dirty[at] = append([]byte(nil), entry[(1+i)*sector:(2+i)*sector]...)
	}
	t.log = true
	return nil
}

func (t *toy) Size() int64 { return toySize }
func (t *toy) Info() ops.Info {
	return ops.Info{Type: ops.Fixed, LogicalSector: sector, BlockSize: toyBlock}
}

func (t *toy) ReadRun(p []byte, off int64) (int, ops.Kind, error) {
	if off >= toySize {
		return 0, 0, io.EOF
	}
	n := min(int64(len(p)), sector-off%sector)
	if b := t.dirty[off/sector]; b != nil {
		copy(p[:n], b[off%sector:])
		return int(n), ops.Data, nil
	}
	_, err := t.f.ReadAt(p[:n], toyData+off)
	return int(n), ops.Data, err
}

func (t *toy) Extent(off, limit int64) (ops.Extent, error) {
	if off >= toySize {
		return ops.Extent{}, io.EOF
	}
	return ops.Extent{Len: min(limit, toySize-off), Kind: ops.Data, Pos: toyData + off}, nil
}

func (t *toy) WriteAt(p []byte, off int64) (int, error) {
	if err := t.replay(); err != nil {
		return 0, err
	}
	for at := int64(0); at < int64(len(p)); at += sector {
		i := (off + at) / sector
		if len(t.dirty) >= toySlots && t.dirty[i] == nil {
			if err := t.Flush(); err != nil {
				return 0, err
			}
			if err := t.replay(); err != nil {
				return 0, err
			}
		}
		t.dirty[i] = append([]byte(nil), p[at:at+sector]...)
	}
	return len(p), nil
}

func (t *toy) Zero(off, n int64, _ bool) error {
	_, err := t.WriteAt(make([]byte, n), off)
	return err
}

// Flush writes the log and syncs it: before the sync the old disk stands, after it
// the log does. The disk follows with the next write.
func (t *toy) Flush() error {
	if len(t.dirty) == 0 || t.log {
		return nil
	}
	if err := t.writeLog(); err != nil {
		return err
	}
	t.log = true
	if t.bug == "no syncs" {
		return nil
	}
	return t.f.Sync("toy.log")
}

// replay empties a log that was found: after its sync the log may change.
func (t *toy) replay() error {
	if !t.log || t.bug == "no replay" {
		return nil
	}
	if err := t.writeDisk(); err != nil {
		return err
	}
	if err := t.f.Sync("toy.replay"); err != nil {
		return err
	}
	t.dirty, t.log = map[int64][]byte{}, false
	return nil
}

func (t *toy) writeDisk() error {
	for at, b := range t.dirty {
		if _, err := t.f.WriteAt(b, toyData+at*sector); err != nil {
			return err
		}
	}
	return nil
}

func (t *toy) writeLog() error {
	entry := make([]byte, toyLog)
	binary.BigEndian.PutUint64(entry[8:], uint64(len(t.dirty)))
	i := 0
	for at, b := range t.dirty {
		binary.BigEndian.PutUint64(entry[16+8*i:], uint64(at))
		copy(entry[(1+i)*sector:], b)
		i++
	}
	entry = entry[:(1+len(t.dirty))*sector]
	sum := crc32.ChecksumIEEE(append(append([]byte(nil), entry[:sector-4]...), entry[sector:]...))
	binary.BigEndian.PutUint32(entry[sector-4:], sum)
	_, err := t.f.WriteAt(entry, 0)
	return err
}

func (t *toy) Close() error {
	if t.write && t.bug != "close forgets" {
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return t.f.Close()
}

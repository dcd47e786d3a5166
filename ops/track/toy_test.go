package track_test

import (
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/sim"
)

const granule = 64 << 10

// toy is a disk of which only the first bytes of each granule are looked at. Its
// first sector says what a tracking file wants to know of it:
//
//	0  LinkID   16 stamp   32 1 in a session   40 size
//
// It writes that and the data in place, as a fixed disk does.
type toy struct {
	f ops.File
	d ops.TrackedDisk
}

var toyID = ops.GUID{1, 2, 3}

const (
	toyName = "d.vhdx"
	toyPath = "/vms/" + toyName
	toyData = 4096
)

func (y *toy) put(label string) error {
	b := make([]byte, 512)
	copy(b, y.d.LinkID[:])
	copy(b[16:], y.d.Stamp[:])
	if y.d.Dirty {
		b[32] = 1
	}
	binary.LittleEndian.PutUint64(b[40:], uint64(y.d.Size))
	if _, err := y.f.WriteAt(b, 0); err != nil {
		return err
	}
	return y.f.Sync(label)
}

func readToy(h *sim.Host) ops.TrackedDisk {
	b := h.Bytes(toyPath).Get(0, 512)
	d := ops.TrackedDisk{DiskID: toyID, Dirty: b[32] == 1, Size: int64(binary.LittleEndian.Uint64(b[40:]))}
	copy(d.LinkID[:], b)
	copy(d.Stamp[:], b[16:])
	return d
}

// values are what the granules of a disk hold.
func values(h *sim.Host) []uint64 {
	b, d := h.Bytes(toyPath), readToy(h)
	list := make([]uint64, (d.Size+granule-1)/granule)
	for i := range list {
		list[i] = binary.LittleEndian.Uint64(b.Get(toyData+int64(i)*granule, 8))
	}
	return list
}

func newToyHost(t testing.TB, granules int64) *sim.Host {
	h, err := toyHost(granules)
	require.NoError(t, err)
	return h
}

func toyHost(granules int64) (*sim.Host, error) {
	h := sim.New()
	f, err := h.Dir("/vms").Create(toyName, 0o600)
	if err != nil {
		return nil, err
	}
	y := &toy{f: f, d: ops.TrackedDisk{Size: granules * granule, DiskID: toyID, LinkID: ops.NewGUID(), Stamp: ops.NewGUID()}}
	err = f.Truncate(toyData+granules*granule, "toy")
	return h, errors.Join(err, y.put("toy"), h.Dir("/vms").Sync(".", "toy"), f.Close())
}

// guest writes a toy with its tracking file, as an engine does.
type guest struct {
	h *sim.Host
	y *toy
	t ops.Tracker
}

func image(h *sim.Host) ops.Ref { return ops.Ref{Dir: h.Dir("/vms"), Name: toyName} }

func openGuest(h *sim.Host) (*guest, error) {
	f, err := h.Dir("/vms").Open(toyName, ops.Write)
	if err != nil {
		return nil, err
	}
	g := &guest{h: h, y: &toy{f: f, d: readToy(h)}}
	g.t, err = track.Files{}.Open(image(h), g.y.d, true)
	if err == nil && g.t == nil {
		g.t, err = track.Files{}.Create(image(h), g.y.d)
	}
	return g, err
}

func (g *guest) link(id ops.GUID) error {
	g.y.d.LinkID, g.y.d.Dirty = id, true
	return g.y.put("toy.link")
}

// begin is what comes before the first write.
func (g *guest) begin() error {
	if g.t.Begun() {
		return nil
	}
	g.y.d.Stamp = ops.NewGUID()
	return g.t.Begin(g.y.d.LinkID, g.link)
}

func (g *guest) write(i int64, v uint64) error {
	if err := g.begin(); err != nil {
		return err
	}
	if err := g.t.Write(i*granule+17, 8); err != nil {
		return err
	}
	return g.store(i, v)
}

func (g *guest) store(i int64, v uint64) error {
	_, err := g.y.f.WriteAt(binary.LittleEndian.AppendUint64(nil, v), toyData+i*granule)
	return err
}

func (g *guest) flush() error { return g.y.f.Sync("toy.flush") }

func (g *guest) resize(granules int64) error {
	if err := g.begin(); err != nil {
		return err
	}
	size := granules * granule
	return g.t.Resize(size, func() error {
		b := make([]byte, 8)
		for i := g.y.d.Size / granule; i < granules; i++ { // what an earlier life left is gone
			clear(b)
			if _, err := g.y.f.ReadAt(b, toyData+i*granule); err != nil && err != io.EOF {
				return err
			}
			if binary.LittleEndian.Uint64(b) == 0 {
				continue
			}
			if err := g.store(i, 0); err != nil {
				return err
			}
		}
		if err := g.flush(); err != nil {
			return err
		}
		g.y.d.Size = size
		return g.y.put("toy.size")
	})
}

func (g *guest) seal() (string, error) {
	if err := g.flush(); err != nil {
		return "", err
	}
	renew := g.link
	if !g.t.Begun() {
		renew = nil
	}
	return g.t.Seal(sealTime, g.y.d.LinkID, renew)
}

// close ends the session cleanly.
func (g *guest) close() error {
	if err := g.t.Suspend(g.y.d.Stamp); err != nil {
		return err
	}
	err := g.flush()
	if err == nil && g.t.Begun() {
		g.y.d.Dirty, g.y.d.Stamp = false, ops.NewGUID()
		err = g.y.put("toy.close")
	}
	if err == nil {
		err = g.t.Resume(g.y.d)
	}
	return errors.Join(err, g.t.Close(), g.y.f.Close())
}

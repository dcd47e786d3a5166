package track_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/track"
	"vhdfs/test/sim"
)

// files are copies of the disk, of its tracking file, or of both.
type files map[string][]byte

const vctPath = toyPath + track.Suffix

func save(t *testing.T, h *sim.Host, paths ...string) files {
	t.Helper()
	c := files{}
	for _, p := range paths {
		b, err := h.ReadFile(p)
		require.NoError(t, err)
		c[p] = b
	}
	return c
}

func (c files) putBack(h *sim.Host) {
	for p, b := range c {
		h.Put(p, b)
	}
}

// Whoever puts one of both back, or writes the disk without tracking it, ends what
// was tracked: never is a change left out.
func TestWhatIsPutBackIsNoticed(t *testing.T) {
	both := []string{toyPath, vctPath}
	for _, tt := range []struct {
		name string
		// do gets a disk with a session that ended cleanly, and leaves one.
		do   func(t *testing.T, h *sim.Host)
		lost bool
	}{
		{"nothing happens", func(*testing.T, *sim.Host) {}, false},
		{"both are put back to the last clean close", func(t *testing.T, h *sim.Host) {
			c := save(t, h, both...)
			session(t, h, 5)
			c.putBack(h)
		}, false},
		{"the disk is put back to before a session", func(t *testing.T, h *sim.Host) {
			c := save(t, h, toyPath)
			session(t, h, 5)
			c.putBack(h)
		}, true},
		{"the disk is put back to within the last session", func(t *testing.T, h *sim.Host) {
			g := begin(t, h, 5)
			c := save(t, h, toyPath)
			require.NoError(t, g.write(6, 1))
			require.NoError(t, g.close())
			c.putBack(h)
		}, true},
		{"the disk is put back to before an id, after a crash", func(t *testing.T, h *sim.Host) {
			g := begin(t, h, 5)
			c := save(t, h, toyPath)
			require.NoError(t, g.write(6, 1))
			_, err := g.seal()
			require.NoError(t, err)
			c.putBack(h)
		}, true},
		{"the tracking file is put back to before a session", func(t *testing.T, h *sim.Host) {
			c := save(t, h, vctPath)
			session(t, h, 5)
			c.putBack(h)
		}, true},
		{"the tracking file is put back to within the last session", func(t *testing.T, h *sim.Host) {
			g := begin(t, h, 5)
			require.NoError(t, g.t.Settle(true))
			c := save(t, h, vctPath)
			require.NoError(t, g.write(200, 1))
			require.NoError(t, g.close())
			c.putBack(h)
		}, true},
		{"both are put back to within the last session, as in a crash", func(t *testing.T, h *sim.Host) {
			g := begin(t, h, 5)
			c := save(t, h, both...)
			require.NoError(t, g.write(200, 1))
			require.NoError(t, g.close())
			c.putBack(h)
		}, false},
		{"another program opens the disk and writes nothing", func(t *testing.T, h *sim.Host) {
			foreign(t, h, func(d *ops.TrackedDisk) {})
		}, true},
		{"another program writes the disk", func(t *testing.T, h *sim.Host) {
			foreign(t, h, func(d *ops.TrackedDisk) { d.LinkID = ops.NewGUID() })
		}, true},
		{"another program ends a session that a crash broke off", func(t *testing.T, h *sim.Host) {
			begin(t, h, 5)
			foreign(t, h, func(d *ops.TrackedDisk) { d.Dirty = false })
		}, true},
		{"another program makes it longer", func(t *testing.T, h *sim.Host) {
			foreign(t, h, func(d *ops.TrackedDisk) { d.Size += granule })
		}, true},
		{"the tracking file of another disk", func(t *testing.T, h *sim.Host) {
			o := newToyHost(t, 300)
			session(t, o, 1)
			save(t, o, vctPath).putBack(h)
		}, true},
		{"the tracking file is cut", func(t *testing.T, h *sim.Host) { h.Bytes(vctPath).Truncate(2 << 20) }, true},
		{"a page of it reads as zeros", func(t *testing.T, h *sim.Host) { h.Bytes(vctPath).Write(2<<20, make([]byte, 1024)) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newToyHost(t, 300)
			g := begin(t, h, 3)
			id, err := g.seal()
			require.NoError(t, err)
			was := values(h)
			require.NoError(t, g.write(4, 77))
			require.NoError(t, g.close())
			tt.do(t, h)
			tr, err := track.Files{}.Open(image(h), readToy(h), true)
			require.NoError(t, err)
			defer func() { require.NoError(t, tr.Close()) }()
			c, err := tr.Changes(id, whole)
			if tt.lost {
				require.ErrorIs(t, err, ops.ErrNoTracking)
				require.Equal(t, ops.StatusTrackingMissing, ops.StatusOf(err))
				return
			}
			require.NoError(t, err)
			require.NoError(t, covers(c, was, values(h)))
		})
	}
}

func begin(t *testing.T, h *sim.Host, at int64) *guest {
	t.Helper()
	g, err := openGuest(h)
	require.NoError(t, err)
	require.NoError(t, g.write(at, 9))
	return g
}

func session(t *testing.T, h *sim.Host, at int64) {
	t.Helper()
	require.NoError(t, begin(t, h, at).close())
}

// foreign is a session of a program that knows nothing of tracking files.
func foreign(t *testing.T, h *sim.Host, change func(*ops.TrackedDisk)) {
	t.Helper()
	f, err := h.Dir("/vms").Open(toyName, ops.Write)
	require.NoError(t, err)
	y := &toy{f: f, d: readToy(h)}
	y.d.Stamp = ops.NewGUID()
	change(&y.d)
	require.NoError(t, y.put("foreign"))
	require.NoError(t, f.Close())
}

// An id of a time line that was put back is unknown, also when the new one has come
// as far.
func TestIDsOfAnotherTimeLineAreUnknown(t *testing.T) {
	h := newToyHost(t, 300)
	session(t, h, 1)
	c := save(t, h, toyPath, vctPath)
	seal := func(at int64) string {
		g := begin(t, h, at)
		id, err := g.seal()
		require.NoError(t, err)
		require.NoError(t, g.close())
		return id
	}
	lost := seal(2)
	c.putBack(h)
	kept := seal(3)
	require.NotEqual(t, lost, kept)
	tr, err := track.Files{}.Open(image(h), readToy(h), true)
	require.NoError(t, err)
	_, err = tr.Changes(lost, whole)
	require.ErrorIs(t, err, ops.ErrNoTracking)
	require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
	_, err = tr.Changes(kept, whole)
	require.NoError(t, err)
	require.NoError(t, tr.Close())
}

// A child reads as its parent does, and answers for the parent's ids; what it gives
// itself nobody else knows.
func TestAChildInheritsIDs(t *testing.T) {
	h := newToyHost(t, 300)
	g := begin(t, h, 3)
	id, err := g.seal()
	require.NoError(t, err)
	require.NoError(t, g.write(150, 1))
	require.NoError(t, g.close())
	was := readToy(h)
	for _, name := range []string{"a.avhdx", "b.avhdx"} {
		child := ops.Ref{Dir: h.Dir("/vms"), Name: name}
		is := ops.TrackedDisk{Size: was.Size, DiskID: toyID, LinkID: ops.NewGUID(), Stamp: ops.NewGUID()}
		require.NoError(t, track.Files{}.Inherit(image(h), was, child, is))
		tr, err := track.Files{}.Open(child, is, true)
		require.NoError(t, err)
		require.Empty(t, tr.State().Lost)
		c, err := tr.Changes(id, whole)
		require.NoError(t, err)
		require.Equal(t, []int64{150}, list(t, c))
		own, err := tr.Seal(sealTime, is.LinkID, nil)
		require.NoError(t, err)
		c, err = tr.Changes(own, whole)
		require.NoError(t, err)
		require.Empty(t, list(t, c))
		require.NoError(t, tr.Close())
		if name == "a.avhdx" {
			id2 := own
			tr, err := track.Files{}.Open(image(h), was, true)
			require.NoError(t, err)
			_, err = tr.Changes(id2, whole)
			require.Equal(t, ops.StatusTrackingID, ops.StatusOf(err))
			require.NoError(t, tr.Close())
		}
	}
}

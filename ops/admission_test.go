package ops_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// Who may open what for writing (H44, «An image with children»).
func TestOpenForWriting(t *testing.T) {
	t.Run("an image with a child", func(t *testing.T) {
		w := newWorld(t)
		w.line(2)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "/vms/1.vhdx is the parent of /vms/2.vhdx")
	})
	t.Run("a child in a search folder", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", parent)
		w.image("/search/c.avhdx", recorded(`C:\x\p.vhdx`))
		_, err := w.lib.Open(w.lib.Top("p.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
	})
	t.Run("a child that wants another id does not count", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", fakeImage{ID: guid(9)})
		w.image("/vms/c.avhdx", recorded("p.vhdx"))
		w.open("p.vhdx", ops.Write)
	})
	t.Run("a child of a copy does not count", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/p.vhdx", parent)
		w.image("/vms/copy/p.vhdx", parent)
		w.image("/vms/copy/c.avhdx", recorded("p.vhdx"))
		w.open("p.vhdx", ops.Write)
		_, err := w.lib.Open(w.lib.Top("copy/p.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
	})
	t.Run("a parent in use", func(t *testing.T) {
		w := newWorld(t)
		w.image("/allow/p.vhdx", parent)
		w.image("/vms/c.avhdx", recorded("/allow/p.vhdx"))
		h := w.open("c.avhdx", ops.Read)
		_, err := w.lib.Open(ops.Ref{Dir: w.dirs["/allow"], Name: "p.vhdx"}, ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "is the parent of an image that is open")
		require.NoError(t, h.Close())
	})
	t.Run("a parent that is open for writing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.image("/vms/p.vhdx", parent)
			p := w.open("p.vhdx", ops.Write)
			w.image("/vms/c.avhdx", recorded("p.vhdx"))
			_, err := w.lib.Open(w.lib.Top("c.avhdx"), ops.Read)
			require.ErrorIs(t, err, ops.ErrBusy)
			require.ErrorContains(t, err, "/vms/p.vhdx is open for writing and cannot be the parent of /vms/c.avhdx")
			go func() {
				time.Sleep(500 * time.Millisecond)
				require.NoError(t, p.Close())
			}()
			w.open("c.avhdx", ops.Read) // waits for a close that is on its way
		})
	})
	t.Run("an image that says no", func(t *testing.T) {
		w := newWorld(t)
		w.image("/vms/a.vhdx", fakeImage{ReadOnly: "the log is odd"})
		_, err := w.lib.Open(w.lib.Top("a.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrReadOnly)
		require.ErrorContains(t, err, "/vms/a.vhdx: the log is odd")
		w.open("a.vhdx", ops.Read)
	})
	t.Run("something else uses the file", func(t *testing.T) {
		w := newWorld(t)
		o := w.options()
		o.BeforeWrite = func(ops.FileID) error { return ops.Errorf(ops.ErrBusy, 0, "loop0") }
		w.lib = ops.NewLibrary(o)
		w.line(1)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrBusy)
		w.open("1.vhdx", ops.Read)
	})
	t.Run("another program reads", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		f := w.lockOutside("/vms/1.vhdx", false)
		r := w.open("1.vhdx", ops.Read)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Write)
		require.ErrorIs(t, err, ops.ErrBusy)
		_, err = r.ReadAt(make([]byte, 1), 0)
		require.NoError(t, err, "the reader goes on")
		require.NoError(t, f.Close())
		w.open("1.vhdx", ops.Write)
	})
	t.Run("another program writes", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		f := w.lockOutside("/vms/1.vhdx", true)
		_, err := w.lib.Open(w.lib.Top("1.vhdx"), ops.Read)
		require.ErrorIs(t, err, ops.ErrBusy)
		require.NoError(t, f.Close())
		w.open("1.vhdx", ops.Read)
	})
	t.Run("another program is kept out", func(t *testing.T) {
		w := newWorld(t)
		w.line(1)
		h := w.open("1.vhdx", ops.Write)
		f, err := w.dirs["/vms"].Open("1.vhdx", ops.Read)
		require.NoError(t, err)
		require.ErrorIs(t, f.Lock(false), ops.ErrBusy)
		require.NoError(t, h.Close())
		require.NoError(t, f.Lock(true))
		require.NoError(t, f.Close())
	})
}

func (w *world) lockOutside(path string, write bool) ops.File {
	w.Helper()
	f, err := w.host.Dir("/").Open(path[1:], ops.Write)
	require.NoError(w, err)
	require.NoError(w, f.Lock(write))
	return f
}

func TestSets(t *testing.T) { synctest.Test(t, testSets) }

func testSets(t *testing.T) {
	w := newWorld(t)
	w.image("/vms/p.vhdx", parent)
	leaf := recorded("p.vhdx")
	w.image("/vms/Leaf.avhdx", leaf)
	w.put("/vms/s.vhds", []byte("set:leaf.avhdx"))
	found, err := w.lib.Inspect(w.lib.Top("s.vhds"))
	require.NoError(t, err)
	require.NoError(t, found.Err)
	require.Equal(t, "/vms/Leaf.avhdx", found.Leaf.Path())
	require.Equal(t, "00000064-0000-4000-8000-000000000000", found.Info.LinkID.String())
	require.EqualValues(t, 4096, found.Size)
	chain, err := w.lib.ChainOf(w.lib.Top("s.vhds"))
	require.NoError(t, err)
	require.Len(t, chain, 2)
	require.Equal(t, "/vms/p.vhdx", chain[1].Ref.Path())

	_, err = w.lib.Open(w.lib.Top("Leaf.avhdx"), ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.ErrorContains(t, err, "belongs to the set /vms/s.vhds")
	own := w.open("Leaf.avhdx", ops.Read)
	_, err = w.lib.Open(w.lib.Top("s.vhds"), ops.Write)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.NoError(t, own.Close())
	set := w.open("s.vhds", ops.Write)
	_, err = set.WriteAt([]byte("x"), 5)
	require.NoError(t, err)
	_, err = w.lib.Open(w.lib.Top("Leaf.avhdx"), ops.Read)
	require.ErrorIs(t, err, ops.ErrBusy)
	require.NoError(t, set.Close())
	b, err := w.read("Leaf.avhdx")
	require.NoError(t, err)
	require.Equal(t, byte('x'), b[5])

	// The set's writer left a writable engine to a reader: that permits nothing.
	reader := w.open("s.vhds", ops.Read)
	set = w.open("s.vhds", ops.Write)
	require.NoError(t, set.Close())
	_, err = w.lib.Open(w.lib.Top("Leaf.avhdx"), ops.Write)
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.NoError(t, reader.Close())
}

func TestSetsThatLead(t *testing.T) {
	for _, tt := range []struct {
		leaf string
		err  error
		text string
	}{
		{"s.vhds", ops.ErrCorrupt, "a set where a disk is needed"},
		{"gone.avhdx", ops.ErrParentMissing, `active disk "gone.avhdx" of set /vms/s.vhds`},
		{`..\other\a.vhdx`, ops.ErrCorrupt, "is not a name in its own folder"},
		{"/other/a.vhdx", ops.ErrCorrupt, "is not a name in its own folder"},
		{"a.vhd", ops.ErrCorrupt, "is a fakev"},
		{"link.vhdx", ops.ErrParentMissing, "passes a symbolic link"},
	} {
		t.Run(tt.leaf, func(t *testing.T) {
			w := newWorld(t)
			w.image("/other/a.vhdx", parent)
			w.image("/vms/a.vhd", fakeImage{Magic: "fakev", ID: guid(1)})
			w.image("/vms/b.vhdx", parent)
			w.host.Symlink("b.vhdx", "/vms/link.vhdx")
			w.put("/vms/s.vhds", []byte("set:"+tt.leaf))
			found, err := w.lib.Inspect(w.lib.Top("s.vhds"))
			require.NoError(t, err)
			require.ErrorIs(t, found.Err, tt.err)
			require.ErrorContains(t, found.Err, tt.text)
			_, err = w.lib.Open(w.lib.Top("s.vhds"), ops.Read)
			require.ErrorIs(t, err, tt.err)
		})
	}
}

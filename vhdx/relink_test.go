package vhdx

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

var (
	idA = mustGUID("aaaaaaaa-0001-4000-8000-00000000000a")
	idB = mustGUID("bbbbbbbb-0002-4000-8000-00000000000b")
)

func recordedBy(t testing.TB, h *sim.Host) locator {
	t.Helper()
	d, err := openHost(t, h, ops.Read)
	require.NoError(t, err)
	it := d.items[itemLocator]
	b := make([]byte, it.length)
	require.NoError(t, readFull(d.src, b, d.regions.metadata.off+int64(it.offset), ""))
	l, err := decodeLocator(b)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	return l
}

func TestSetParent(t *testing.T) {
	long := "/vms/" + strings.Repeat("d/", 3000) + "p.vhdx"
	own := parentLocator()
	own.Entries = append(own.Entries, [2]string{"their_key", "kept"})
	for _, tt := range []struct {
		name  string
		image fixture.VHDX
		p     ops.CreateParent
		want  locator
		moved bool
	}{
		{"both paths", fixture.VHDX{Parent: own}, ops.CreateParent{LinkID: idA, Relative: "./q.vhdx", Absolute: "/vms/q.vhdx"},
			locator{{keyLinkage, "{" + idA.String() + "}"}, {keyRelative, `.\q.vhdx`}, {keyAbsolute, `\vms\q.vhdx`}, {"their_key", "kept"}}, false},
		{"an id to come", fixture.VHDX{Parent: own}, ops.CreateParent{LinkID: idA, NextID: idB, Relative: "../d/q.vhdx"},
			locator{{keyLinkage, "{" + idA.String() + "}"}, {keyLinkage2, "{" + idB.String() + "}"}, {keyRelative, `..\d\q.vhdx`}, {"their_key", "kept"}}, false},
		{"longer, with room behind", fixture.VHDX{Parent: own}, ops.CreateParent{LinkID: idA, Absolute: long},
			locator{{keyLinkage, "{" + idA.String() + "}"}, {keyAbsolute, windowsPath(long)}, {"their_key", "kept"}}, false},
		{"longer, an item behind", fixture.VHDX{Parent: own, Patches: behindLocator()}, ops.CreateParent{LinkID: idA, Absolute: long},
			locator{{keyLinkage, "{" + idA.String() + "}"}, {keyAbsolute, windowsPath(long)}, {"their_key", "kept"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.image.Size = 8 * mib
			tt.image.Items = []fixture.Item{{ID: fixture.MustGUID(guidUnknown), Data: []byte("theirs")}, {ID: fixture.MustGUID(guidUnknown), Flags: 1, Data: fill(600, 9)}}
			h, m := place(t, tt.image)
			w := openWriter(t, h)
			link := w.Info().LinkID
			require.NoError(t, w.SetParent(tt.p))
			require.Equal(t, tt.p.LinkID, w.Info().Parent.IDs[0])
			require.Equal(t, tt.want, recordedBy(t, h.Clone()), "durable before the close")
			moved := w.items[itemLocator].offset != fixture.VHDXItemLocator
			require.Equal(t, tt.moved, moved)
			info := w.Info()
			d := closed(t, h, w)
			require.Equal(t, tt.want, recordedBy(t, h))
			require.Equal(t, info.Parent, d.Info().Parent)
			require.Equal(t, link, d.Info().LinkID)
			b := image(t, h)
			require.Equal(t, "theirs", string(b[m.MetaOff+fixture.VHDXItemExtra:][:6]))
			require.Equal(t, fill(600, 9), b[m.MetaOff+fixture.VHDXItemExtra+4096:][:600])
		})
	}
}

// behindLocator moves the first item that nobody knows right behind the locator.
func behindLocator() []fixture.Patch {
	at := int64(fixture.VHDXItemLocator + 2048)
	return append(meta(itemAt(6, 16), le32(uint32(at))), meta(at, []byte("theirs"))...)
}

// A locator larger than a log entry holds moves, whatever room it has.
func TestSetParentOfManyPages(t *testing.T) {
	v := fixture.VHDX{Size: 8 * mib, Parent: parentLocator()}
	for i := range 8 {
		v.Parent.Entries = append(v.Parent.Entries, [2]string{"key" + string(rune('a'+i)), strings.Repeat("v", 32000)})
	}
	h, _ := place(t, v)
	w := openWriter(t, h)
	err := w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"})
	require.ErrorIs(t, err, ops.ErrUsage)
	require.ErrorContains(t, err, "no room for a parent locator of 512350 bytes")
	require.NoError(t, w.Close())
	require.Equal(t, "v", recordedBy(t, h)[5].value[:1])
	r := relink{region: span{2 * mib, 6 * mib}, b: make([]byte, 512350), item: item{offset: fixture.VHDXItemLocator, length: 400}}
	require.NoError(t, r.findRoom(image(t, h)[2*mib:]))
	require.Equal(t, uint32(572*kib), r.item.offset, "behind the one that is there: a log entry holds 126 pages")

	v.Parent.Entries = v.Parent.Entries[:5+7]
	h, _ = place(t, v)
	w = openWriter(t, h)
	require.NoError(t, w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"}))
	closed(t, h, w)
	l := recordedBy(t, h)
	require.Equal(t, `.\q.vhdx`, l[1].value)
	require.Equal(t, strings.Repeat("v", 32000), l[8].value)
}

// What is refused is refused before a byte changes; what changes nothing writes
// nothing.
func TestRefusedMetadata(t *testing.T) {
	h, _ := place(t, fixture.VHDX{Size: 8 * mib, LogicalSector: 4096})
	before := image(t, h)
	w := openWriter(t, h)
	require.ErrorIs(t, w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q"}), errors.ErrUnsupported)
	require.Equal(t, ops.StatusWrongType, ops.StatusOf(w.SetParent(ops.CreateParent{LinkID: idA})))
	for _, n := range []uint32{0, 512, 1024, 8192} {
		require.ErrorIs(t, w.SetPhysicalSector(n), ops.ErrUsage, "%d", n)
	}
	require.ErrorIs(t, w.SetDiskID(ops.GUID{}), ops.ErrUsage)
	require.ErrorIs(t, w.SetLinkID(ops.GUID{}), ops.ErrUsage)
	require.NoError(t, w.SetPhysicalSector(4096))
	require.NoError(t, w.SetDiskID(w.Info().DiskID))
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(before, image(t, h)))

	h = created(t, childSpec(ops.CreateSpec{Size: 8 * mib}))
	before = image(t, h)
	w = openWriter(t, h)
	for _, p := range []ops.CreateParent{{Relative: "./q"}, {LinkID: idA, Relative: "./" + strings.Repeat("x", 20000)}} {
		require.ErrorIs(t, w.SetParent(p), ops.ErrUsage)
	}
	info := w.Info()
	same := ops.CreateParent{LinkID: info.Parent.IDs[0], Relative: "./p.vhdx", Absolute: "/vms/p.vhdx"}
	require.NoError(t, w.SetParent(same))
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(before, image(t, h)))
}

// A session that changes metadata alone keeps the id that children record; a write
// in it changes the id first, in a header of its own.
func TestQuietSession(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *Writer) error
	}{
		{"SetDiskID", func(w *Writer) error { return w.SetDiskID(idA) }},
		{"SetPhysicalSector", func(w *Writer) error { return w.SetPhysicalSector(512) }},
		{"SetParent", func(w *Writer) error { return w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"}) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := place(t, fixture.VHDX{Size: 8 * mib, Parent: parentLocator(), Writes: []fixture.Write{{Off: 0, Data: fill(int(2*mib), 1)}}, Log: &fixture.Log{Tables: true}})
			w := openWriter(t, h)
			link, file := w.Info().LinkID, w.headers.current.fileWrite
			require.NoError(t, tt.do(w))
			require.Equal(t, link, w.Info().LinkID)
			require.NotEqual(t, file, w.headers.current.fileWrite)
			d := closed(t, h, w)
			require.Equal(t, link, d.Info().LinkID)
			require.Equal(t, fill(512, 1), read(t, d, 0, 512))

			for name, change := range map[string]func(w *Writer) error{
				"write": func(w *Writer) error { _, err := w.WriteAt(fill(512, 2), 0); return err },
				"zero":  func(w *Writer) error { return w.Zero(0, 512, false) },
			} {
				h := h.Clone()
				w := openWriter(t, h)
				require.NoError(t, w.SetDiskID(idB))
				h.Record()
				require.NoError(t, change(w))
				require.NotEqual(t, link, w.Info().LinkID, name)
				require.Equal(t, "vhdx.header.link", h.Events()[1].Label, name)
				require.GreaterOrEqual(t, len(h.Events()), 3)
				second := w.Info().LinkID
				require.NoError(t, change(w))
				require.Equal(t, second, closed(t, h, w).Info().LinkID)
			}
		})
	}
}

// SetLinkID holds for the rest of the opening, and no longer.
func TestSetLinkID(t *testing.T) {
	for _, first := range []bool{false, true} {
		h := created(t, ops.CreateSpec{Type: ops.Dynamic, Size: 8 * mib})
		w := openWriter(t, h)
		if first {
			write(t, w, 0, fill(512, 1))
		}
		require.NoError(t, w.SetLinkID(idA))
		d, err := openHost(t, h.Clone(), ops.Read)
		require.NoError(t, err)
		require.Equal(t, idA, d.Info().LinkID)
		require.NoError(t, d.Close())
		write(t, w, 0, fill(512, 2))
		require.NoError(t, w.SetDiskID(idB))
		require.NoError(t, w.SetLinkID(idB))
		write(t, w, 4*mib, fill(512, 2))
		require.Equal(t, idB, closed(t, h, w).Info().LinkID)
		w = openWriter(t, h)
		write(t, w, 0, fill(512, 3))
		require.NotEqual(t, idB, closed(t, h, w).Info().LinkID)
	}
}

// metadataChanges are what the power may cut short: a guest writes meanwhile.
func metadataChanges() (crash.Sequence, func(*Disk) func(found) error) {
	write, flush := crash.Steps[1], crash.Steps[8]
	set := doing("disk id", func(w *Writer) error { return w.SetDiskID(idA) })
	physical := doing("physical", func(w *Writer) error { return w.SetPhysicalSector(512) })
	link := doing("link", func(w *Writer) error { return w.SetLinkID(idB) })
	q := crash.Sequence{set, physical, write, set, crash.Steps[0], flush, link, crash.Steps[6], flush, doing("own id", func(w *Writer) error { return w.SetDiskID(idB) })}
	return q, func(d *Disk) func(found) error {
		was, content := d.Info(), viewOf(d)
		return func(f found) error {
			is := f.disk.Info()
			var errs []error
			if is.LinkID == was.LinkID && viewOf(f.disk) != content {
				errs = append(errs, errors.New("other content under the same link id"))
			}
			if !f.asked["own id"] {
				errs = append(errs, within("disk id", is.DiskID, was.DiskID, idA, f.did["disk id"]))
			} else {
				errs = append(errs, within("disk id", is.DiskID, idA, idB, f.did["own id"]))
			}
			errs = append(errs, within("physical sector", is.PhysicalSector, was.PhysicalSector, 512, f.did["physical"]))
			if f.did["link"] {
				errs = append(errs, within("link id", is.LinkID, was.LinkID, idB, true))
			}
			return errors.Join(errs...)
		}
	}
}

func TestPowerCutsOfMetadata(t *testing.T) {
	for _, c := range crashedImages() {
		if strings.Contains(c.name, "4K") {
			continue // its physical sectors cannot be smaller
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			q, judge := metadataChanges()
			n, err := cutChange(t, c, q, judge)
			require.NoError(t, err)
			t.Logf("%d states", n)
			failEach(t, c, q, nil)
		})
	}
}

// relinks replaces the parent twice: once within the item's place, once in free
// room of the region.
func relinks() (crashed, crash.Sequence, func(*Disk) func(found) error) {
	c := crashed{name: "child", child: true, host: func(t *testing.T) *sim.Host {
		h, _ := place(t, fixture.VHDX{Size: 4*mib + 8192, BlockSize: 1 << 20, Parent: parentLocator(), Patches: behindLocator(),
			Items: []fixture.Item{{ID: fixture.MustGUID(guidUnknown), Data: []byte("theirs")}}})
		return h
	}}
	long := ops.CreateParent{LinkID: idB, Absolute: "/" + strings.Repeat("long/", 1000)}
	q := crash.Sequence{
		doing("near", func(w *Writer) error {
			return w.SetParent(ops.CreateParent{LinkID: idA, NextID: idB, Relative: "./q.vhdx"})
		}),
		crash.Steps[0],
		doing("far", func(w *Writer) error { return w.SetParent(long) }),
		crash.Steps[8],
	}
	return c, q, func(*Disk) func(found) error { return judgeParent }
}

func judgeParent(f found) error {
	old := mustGUID("7584f8fb-36d3-4091-afb5-b1afe587bfa8")
	p := f.disk.Info().Parent
	was, is, did := old, idA, f.did["near"]
	if f.asked["far"] {
		was, is, did = idA, idB, f.did["far"]
	}
	if err := within("parent", p.IDs[0], was, is, did); err != nil {
		return err
	}
	want := map[ops.GUID]int{old: 3, idA: 1, idB: 1}[p.IDs[0]]
	return within("number of paths", len(p.Paths), want, want, true)
}

func TestPowerCutsOfSetParent(t *testing.T) {
	c, q, judge := relinks()
	n, err := cutChange(t, c, q, judge)
	require.NoError(t, err)
	t.Logf("%d states", n)
	failEach(t, c, q, func(h *sim.Host) error {
		d, err := openHost(t, h, ops.Read)
		if err != nil {
			return err
		}
		if ids := []ops.GUID{mustGUID("7584f8fb-36d3-4091-afb5-b1afe587bfa8"), idA, idB}; !slices.Contains(ids, d.Info().Parent.IDs[0]) {
			return errors.New("no parent that was ever set")
		}
		return d.Close()
	})
}

// Each sync on the way is needed.
func TestMetadataSyncsAreNeeded(t *testing.T) {
	c, q, judge := relinks()
	for _, label := range []string{"vhdx.settle", "vhdx.log.entry"} {
		_, err := cutChange(t, c, q, judge, label)
		require.Error(t, err, "%s is dropped and nobody sees it", label)
		t.Logf("%s: %.200s", label, err)
	}
	all := crashedImages()
	c = all[slices.IndexFunc(all, func(c crashed) bool { return c.name == "dynamic" })]
	meta, judgeIDs := metadataChanges()
	_, err := cutChange(t, c, meta, judgeIDs, "vhdx.header.link")
	require.Error(t, err)
	t.Logf("vhdx.header.link: %.200s", err)
}

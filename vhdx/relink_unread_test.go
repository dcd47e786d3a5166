package vhdx

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
)

// noLocator makes the locator's entry that of an item which nobody knows.
func noLocator() []fixture.Patch {
	return append(meta(itemAt(5, 0), guidLE(guidUnknown)), meta(itemAt(5, 24), le32(0))...)
}

// unreadable are locators of which nobody can tell what the parent is, with the
// pairs that are left of them.
func unreadable() map[string]struct {
	image fixture.VHDX
	kept  locator
} {
	theirs := []fixture.Item{{ID: fixture.MustGUID(guidUnknown), Data: []byte("theirs")}}
	image := func(l *fixture.Locator, patches ...fixture.Patch) fixture.VHDX {
		return fixture.VHDX{Size: 4*mib + 8192, BlockSize: 1 << 20, Parent: l, Patches: patches, Items: theirs}
	}
	own := &fixture.Locator{Entries: [][2]string{{"their_key", "kept"}, {"relative_path", `.\p.vhdx`}}}
	none := image(parentLocator(), noLocator()...)
	none.Items = nil
	return map[string]struct {
		image fixture.VHDX
		kept  locator
	}{
		"type":           {image(parentLocator(), meta(fixture.VHDXItemLocator, fill(16, 0xee))...), nil},
		"table":          {image(parentLocator(), meta(fixture.VHDXItemLocator+18, le16(999))...), nil},
		"an offset":      {image(parentLocator(), meta(fixture.VHDXItemLocator+20, le32(1<<31))...), nil},
		"UTF-16":         {image(parentLocator(), meta(fixture.VHDXItemLocator+20+5*12, []byte{0, 0xd8})...), nil},
		"no linkage":     {image(own), locator{{"their_key", "kept"}}},
		"no item":        {none, nil},
		"within another": {image(parentLocator(), append(meta(itemAt(5, 20), le32(0)), meta(itemAt(5, 16), le32(fixture.VHDXItemExtra+2))...)...), nil},
	}
}

func TestSetParentMends(t *testing.T) {
	for name, tt := range unreadable() {
		t.Run(name, func(t *testing.T) {
			h, m := place(t, tt.image)
			before := image(t, h)
			w := openWriter(t, h)
			old, err := w.UnreadParent()
			require.NoError(t, err)
			it := w.items[itemLocator]
			require.True(t, bytes.Equal(before[m.MetaOff+int64(it.offset):][:it.length], old))
			require.ErrorIs(t, w.SetParent(ops.CreateParent{Relative: "./q.vhdx"}), ops.ErrUsage)
			require.True(t, bytes.Equal(before, image(t, h)), "what is refused writes nothing")

			link := w.Info().LinkID
			require.NoError(t, w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"}))
			want := append(locator{{keyLinkage, "{" + idA.String() + "}"}, {keyRelative, `.\q.vhdx`}}, tt.kept...)
			require.Equal(t, want, recordedBy(t, h.Clone()), "durable before the close")
			old, err = w.UnreadParent()
			require.NoError(t, err)
			require.Empty(t, old)
			require.Empty(t, w.Info().Anomalies)
			require.NoError(t, w.SetParent(ops.CreateParent{LinkID: idB, Relative: "./r.vhdx"}))
			d := closed(t, h, w)
			require.Empty(t, d.Info().Anomalies)
			require.NoError(t, d.Info().Parent.Err)
			require.Equal(t, []ops.GUID{idB}, d.Info().Parent.IDs)
			require.Equal(t, link, d.Info().LinkID)
			if len(tt.image.Items) > 0 {
				require.Equal(t, "theirs", string(image(t, h)[m.MetaOff+fixture.VHDXItemExtra:][:6]))
			}
		})
	}
}

// A table that is full has no entry for a locator.
func TestSetParentInAFullTable(t *testing.T) {
	v := unreadable()["no item"].image
	for i := range maxItems - 6 {
		v.Items = append(v.Items, fixture.Item{ID: [16]byte{1, byte(i), byte(i >> 8)}})
	}
	h, _ := place(t, v)
	before := image(t, h)
	w := openWriter(t, h)
	err := w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"})
	require.ErrorIs(t, err, ops.ErrUsage)
	require.ErrorContains(t, err, "among 2047 metadata items")
	require.NoError(t, w.Close())
	require.True(t, bytes.Equal(before, image(t, h)))
}

// After a power cut at any moment the locator is as unreadable as it was, or the
// new one.
func TestPowerCutsOfMending(t *testing.T) {
	q := crash.Sequence{crash.Steps[0], doing("mend", func(w *Writer) error {
		return w.SetParent(ops.CreateParent{LinkID: idA, Relative: "./q.vhdx"})
	}), crash.Steps[8]}
	judge := func(base *Disk) func(found) error {
		was := base.Info().Parent.Err.Error()
		return func(f found) error {
			p := f.disk.Info().Parent
			if p.Err != nil {
				return within("locator", p.Err.Error(), was, "", f.did["mend"])
			}
			return within("parent", p.IDs[0], idA, idA, f.asked["mend"])
		}
	}
	for name, tt := range unreadable() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := crashed{name: name, child: true, lasting: []string{anomalyUnread}, host: func(t *testing.T) *sim.Host {
				h, _ := place(t, tt.image)
				return h
			}}
			n, err := cutChange(t, c, q, judge)
			require.NoError(t, err)
			t.Logf("%d states", n)
			_, err = cutChange(t, c, q, judge, "vhdx.log.entry")
			require.Error(t, err, "vhdx.log.entry is dropped and nobody sees it")
		})
	}
}

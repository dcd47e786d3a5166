package vhd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/mend"
	"vhdfs/test/sim"
)

type repairTest struct {
	v    fixture.VHD
	tail int64    // bytes of zeros that follow the file's own
	says []string // what it reports to be about to change
}

func repairTests() map[string]repairTest {
	dynamic := fixture.VHD{Size: 32 << 10, BlockSize: 4096, Writes: []fixture.Write{{Off: 4096, Data: pattern(1024, 1)}}}
	fixed := fixture.VHD{Size: 32 << 10, Type: 2, Writes: dynamic.Writes}
	child := dynamic
	child.Type, child.Parent = 4, parent()
	with := func(v fixture.VHD, change func(v *fixture.VHD)) fixture.VHD { change(&v); return v }
	patch := func(part string, off int64, data []byte, good bool) func(v *fixture.VHD) {
		return func(v *fixture.VHD) {
			v.Patches = append(slices.Clone(v.Patches), fixture.VHDPatch{Part: part, Off: off, Data: data, Repair: good})
		}
	}
	bad := []byte{1, 2, 3, 4}
	sameSums := with(with(dynamic, patch("tail", 64, bad, false)), patch("copy", 64, bad, false))
	short := func(v *fixture.VHD) { v.ShortFooter = true }
	trailing := func(n int) func(v *fixture.VHD) { return func(v *fixture.VHD) { v.Trailing = pattern(n, 0x5a) } }
	lost := with(dynamic, func(v *fixture.VHD) { v.NoTail, v.Trailing = true, pattern(1000, 0x5a) })
	leak := with(dynamic, func(v *fixture.VHD) {
		v.Blocks, v.BAT = []int64{1, 2, 3, 4, 5}, map[int64]uint32{2: unused, 3: unused, 4: unused, 5: unused}
	})
	return map[string]repairTest{
		"sound":                     {v: dynamic},
		"sound child":               {v: child},
		"sound fixed":               {v: fixed},
		"no tail":                   {v: with(dynamic, func(v *fixture.VHD) { v.NoTail = true }), says: []string{"vhd.footer.end"}},
		"bad tail":                  {v: with(child, patch("tail", 64, bad, false)), says: []string{"vhd.footer.end"}},
		"no copy":                   {v: with(dynamic, func(v *fixture.VHD) { v.NoCopy = true }), says: []string{"vhd.footer.copy"}},
		"bad copy":                  {v: with(child, patch("copy", 64, bad, false)), says: []string{"vhd.footer.copy"}},
		"copy of another size":      {v: with(dynamic, patch("copy", 48, be64(16<<10), true)), says: []string{"vhd.footer.differ"}},
		"copy larger than table":    {v: with(dynamic, patch("copy", 48, be64(80<<20), true)), says: []string{"vhd.footer.differ"}},
		"copy of another type":      {v: with(dynamic, patch("copy", 60, be32(4), true)), says: []string{"vhd.footer.differ"}},
		"copy of a fixed disk":      {v: with(dynamic, patch("copy", 60, be32(2), true)), says: []string{"vhd.footer.differ"}},
		"copy of no type":           {v: with(child, patch("copy", 60, be32(9), true)), says: []string{"vhd.footer.differ"}},
		"tail of another type":      {v: with(dynamic, patch("tail", 60, be32(4), true)), says: []string{"vhd.footer.differ"}},
		"tail larger than table":    {v: with(child, patch("tail", 48, be64(80<<20), true)), says: []string{"vhd.footer.differ"}},
		"same wrong checksums":      {v: sameSums, says: []string{"vhd.footer.checksum"}},
		"511 bytes":                 {v: with(dynamic, short), says: []string{"vhd.footer.short"}},
		"511 bytes, no copy":        {v: with(with(dynamic, short), func(v *fixture.VHD) { v.NoCopy = true }), says: []string{"vhd.footer.short", "vhd.footer.copy"}},
		"fixed, 511 bytes":          {v: with(fixed, short), says: []string{"vhd.footer.short"}},
		"fixed, bad checksum":       {v: with(fixed, patch("tail", 64, bad, false)), says: []string{"vhd.footer.checksum"}},
		"fixed, garbage":            {v: with(fixed, trailing(1000)), says: []string{"vhd.footer.end"}},
		"fixed, zeros":              {v: fixed, tail: 1 << 20, says: []string{"vhd.footer.end"}},
		"fixed, growth was cut off": {v: with(with(fixed, func(v *fixture.VHD) { v.Size = 64 << 10 }), patch("tail", 48, be64(32<<10), true)), says: []string{"vhd.length"}},
		"garbage":                   {v: with(dynamic, trailing(64<<10)), says: []string{"vhd.footer.end", "vhd.leak"}},
		"garbage of no sectors":     {v: with(child, trailing(64<<10+7)), says: []string{"vhd.footer.end", "vhd.leak"}},
		"garbage for a tail":        {v: lost, says: []string{"vhd.footer.end"}},
		"leak":                      {v: leak, says: []string{"vhd.leak"}},
	}
}

func (c repairTest) host(t testing.TB) *sim.Host {
	t.Helper()
	h := disk(c.v.Bytes())
	if c.tail > 0 {
		f := openFile(t, h, ops.Write)
		require.NoError(t, f.Truncate(int64(len(c.v.Bytes()))+c.tail, "test"))
		require.NoError(t, f.Close())
	}
	return h
}

// want is what the disk holds.
func (c repairTest) want() []byte {
	b := model(c.v, 0)
	return b[:min(len(b), 32<<10)]
}

// damaged is the image as every repair is tried on it.
func (c repairTest) damaged(t testing.TB) mend.Case {
	return mend.Case{
		Place: func() *sim.Host { return c.host(t) },
		Open: func(h *sim.Host) (mend.Writer, error) {
			l, err := Open(openFile(t, h, ops.Write), ops.OpenOptions{Write: true, Repair: true, Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
			if err != nil {
				return nil, err
			}
			return l.(mend.Writer), nil
		},
		Sound: func(h *sim.Host, _ bool) error { return c.sound(t, h) },
		Says:  len(c.says),
	}
}

func openRepair(t testing.TB, h *sim.Host) mend.Writer {
	t.Helper()
	w, err := repairTest{}.damaged(t).Open(h)
	require.NoError(t, err)
	return w
}

// sound asks that an image opens for writing with nothing odd about it, and holds
// what it should.
func (c repairTest) sound(t testing.TB, h *sim.Host) error {
	t.Helper()
	l, err := Open(openFile(t, h, ops.Read), ops.OpenOptions{Ext: ".vhd", Cache: ops.NewCache(1 << 20)})
	if err != nil {
		return err
	}
	got, err := readLayer(l, 0, l.Size(), 0)
	if err != nil || !bytes.Equal(c.want(), got) {
		return errors.Join(errors.New("it reads otherwise"), err)
	}
	if as := append(l.Info().Anomalies, findings(t, l)...); len(as) > 0 || l.Info().ReadOnly != "" {
		return fmt.Errorf("it says %v", as)
	}
	return l.Close()
}

func TestRepair(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) {
			h := c.host(t)
			w := openRepair(t, h)
			changes := h.Changes()
			said, err := mend.Repair(t, w)
			require.NoError(t, err)
			require.Equal(t, c.says, names(said))
			require.Equal(t, len(c.says) > 0, h.Changes() > changes)
			changes = h.Changes()
			said, err = mend.Repair(t, w)
			require.NoError(t, err)
			require.Empty(t, said, "it is mended")
			require.Equal(t, changes, h.Changes())
			require.Empty(t, w.Info().Anomalies)
			require.Empty(t, w.Info().ReadOnly)
			require.NoError(t, w.Close())
			require.NoError(t, c.sound(t, h))
			if b := image(t, h); c.v.Type != 2 {
				require.Equal(t, b[:512], b[len(b)-512:], "both footers are the same")
				require.LessOrEqual(t, len(b), len(c.v.Bytes())+blockAlignment, "no longer than before, but for a footer")
			}
			edit(t, h, func(w ops.Writer) { write(t, w, 8192, 5, 1) })
		})
	}
}

// The power goes at any time: the repair can be done again, and is not lost once it
// was answered.
func TestRepairStates(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.damaged(t).Cut(t)
			require.NoError(t, err)
			t.Logf("%d states, %d failed calls", n, c.damaged(t).Fail(t))
		})
	}
}

func TestRepairNeedsItsSyncs(t *testing.T) {
	for label, name := range map[string]string{
		"vhd.repair": "511 bytes", "vhd.fixed.repair": "fixed, 511 bytes", "vhd.cut": "leak",
		"vhd.cut ": "fixed, growth was cut off",
	} {
		t.Run(label, func(t *testing.T) {
			_, err := repairTests()[name].damaged(t).Cut(t, strings.TrimSpace(label))
			require.Error(t, err)
			t.Log(err)
		})
	}
}

// What nothing in the file decides stays as it is, byte for byte, and is not written.
func TestRepairNeverGuesses(t *testing.T) {
	dynamic := fixture.VHD{Size: 32 << 10, BlockSize: 4096, Writes: []fixture.Write{{Off: 4096, Data: pattern(1024, 1)}}}
	overlap := fixture.VHD{Size: 32 << 10, BlockSize: 4096, Blocks: []int64{0, 1}, BAT: map[int64]uint32{3: 15}, NoTail: true}
	patched := func(off int64, data []byte, parts ...string) fixture.VHD {
		v := dynamic
		for _, part := range parts {
			v.Patches = append(v.Patches, fixture.VHDPatch{Part: part, Off: off, Data: data, Repair: true})
		}
		return v
	}
	old := patched(84, []byte{1}, "copy", "tail")
	old.ShortFooter = true
	for name, v := range map[string]fixture.VHD{
		"saved state, 511 bytes": old,
		"another id":             patched(68, pattern(16, 7), "copy"),
		"another creator":        patched(28, []byte("evil"), "copy"),
		"saved state":            patched(84, []byte{1}, "copy", "tail"),
		"blocks that overlap":    overlap,
	} {
		t.Run(name, func(t *testing.T) {
			h := disk(v.Bytes())
			w := openRepair(t, h)
			said, err := mend.Repair(t, w)
			require.NoError(t, err)
			require.Empty(t, said)
			if name != "blocks that overlap" {
				_, err = w.WriteAt(make([]byte, 512), 0)
				require.ErrorIs(t, err, ops.ErrReadOnly)
				require.ErrorIs(t, w.(ops.Resizer).Resize(t.Context(), 64<<10, 0), ops.ErrReadOnly)
				require.NotEmpty(t, w.Info().Anomalies)
			}
			require.NoError(t, w.Close())
			require.True(t, bytes.Equal(v.Bytes(), image(t, h)))
		})
	}
}

// The caller writes down what will change before it does, and may stop it.
func TestRepairReportsFirst(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) { c.damaged(t).ReportsFirst(t) })
	}
}

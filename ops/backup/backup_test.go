package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/backup"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

const (
	folder = "/backups"
	mib    = 1 << 20
)

var diskID = ops.GUID{1, 15: 2}

// day is a backup of a disk with the content is.
type day struct {
	since, id string
	is        []byte
	ranges    []ops.Range
}

func (d day) make(h *sim.Host, name string) (backup.Totals, error) {
	head := backup.Head{Size: int64(len(d.is)), DiskID: diskID, Since: d.since, ID: d.id}
	return backup.Create(at(h, name), head, func(w *backup.Writer) error {
		for _, r := range d.ranges {
			if err := w.Add(context.Background(), r, bytes.NewReader(d.is)); err != nil {
				return err
			}
		}
		return nil
	})
}

func at(h *sim.Host, name string) ops.Ref { return ops.Ref{Dir: h.Dir(folder), Name: name} }

func restore(h *sim.Host, to string, names ...string) ([]byte, error) {
	var from []ops.Ref
	for _, n := range names {
		from = append(from, at(h, n))
	}
	if _, err := backup.Restore(context.Background(), at(h, to), from); err != nil {
		return nil, err
	}
	return h.ReadFile(folder + "/" + to)
}

// week is a disk that is written, grows, shrinks and is cleared.
func week() []day {
	full := bytes.Repeat([]byte("monday!!"), 3*mib/8)
	clear(full[mib : 2*mib])
	second := append([]byte(nil), full...)
	copy(second[mib+100:], "tuesday")
	clear(second[:8192])
	third := append(append([]byte(nil), second...), bytes.Repeat([]byte{0, 3}, mib)...)
	fourth := append([]byte(nil), third[:2*mib]...)
	fifth := append(append([]byte(nil), fourth...), make([]byte, 2*mib)...)
	return []day{
		{"", "a", full, []ops.Range{{Off: 0, Len: mib}, {Off: 2 * mib, Len: mib}}},
		{"a", "b", second, []ops.Range{{Off: 0, Len: 65536}, {Off: mib, Len: 65536}}},
		{"b", "c", third, []ops.Range{{Off: 3 * mib, Len: 2 * mib}}},
		{"c", "d", fourth, nil},
		{"d", "e", fifth, []ops.Range{{Off: 2 * mib, Len: 2 * mib}}},
	}
}

func store(t *testing.T, days []day) (*sim.Host, []string) {
	t.Helper()
	h := sim.New()
	h.Dir(folder)
	var names []string
	for _, d := range days {
		_, err := d.make(h, d.id)
		require.NoError(t, err)
		names = append(names, d.id)
	}
	return h, names
}

// Each day is what it was; nothing but the backups and what was restored is left.
func TestEachDayIsRestored(t *testing.T) {
	days := week()
	h, names := store(t, days)
	for i, d := range days {
		got, err := restore(h, fmt.Sprintf("r%d", i), names[:i+1]...)
		require.NoError(t, err)
		require.True(t, bytes.Equal(d.is, got), "day %d", i)
	}
	list, err := h.Dir(folder).List(".")
	require.NoError(t, err)
	require.Len(t, list, 2*len(days)+len(days))
}

// Holes of the disk, and zeros in what is kept, take no space.
func TestZerosAreHoles(t *testing.T) {
	h := sim.New()
	is := make([]byte, 64*mib)
	is[40*mib] = 1
	before := h.Used()
	_, err := day{"", "a", is, []ops.Range{{Off: 0, Len: 64 * mib}}}.make(h, "a")
	require.NoError(t, err)
	require.Less(t, h.Used()-before, int64(64<<10))
}

func TestWhatIsRefused(t *testing.T) {
	days := week()
	for _, tt := range []struct {
		name   string
		spoil  func(t *testing.T, h *sim.Host)
		from   string
		class  error
		phrase string
	}{
		{"an increment first", nil, "b c", ops.ErrUsage, "begins with a full one"},
		{"a gap", nil, "a c", ops.ErrUsage, "has what changed since b, but /backups/a ends with a"},
		{"twice the same", nil, "a b b", ops.ErrUsage, "since a, but /backups/b ends with b"},
		{"out of order", nil, "a c b", ops.ErrUsage, "since b"},
		{"two full ones", nil, "a a", ops.ErrUsage, "only the first"},
		{"another disk", func(t *testing.T, h *sim.Host) {
			other := diskID
			other[0]++
			_, err := backup.Create(at(h, "x"), backup.Head{Size: mib, DiskID: other, Since: "a", ID: "x"}, func(*backup.Writer) error { return nil })
			require.NoError(t, err)
		}, "a x", ops.ErrUsage, "of disk"},
		{"no map", func(t *testing.T, h *sim.Host) { require.NoError(t, h.Dir(folder).Remove("b.map")) }, "a b", iofs.ErrNotExist, "map of backup"},
		{"the map of another", func(t *testing.T, h *sim.Host) { swap(t, h, "b.map", "a.map") }, "b", ops.ErrBackup, "damaged"},
		{"bytes of another", func(t *testing.T, h *sim.Host) { swap(t, h, "a", "b") }, "a", ops.ErrBackup, "damaged"},
		{"no file at all", func(*testing.T, *sim.Host) {}, "a z", iofs.ErrNotExist, "z"},
		{"too long", func(t *testing.T, h *sim.Host) { grow(t, h, "a") }, "a", ops.ErrBackup, "of a disk of"},
		{"nothing", nil, "", ops.ErrUsage, "no backup"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := store(t, days)
			if tt.spoil != nil {
				tt.spoil(t, h)
			}
			_, err := restore(h, "r", strings.Fields(tt.from)...)
			require.ErrorIs(t, err, tt.class)
			require.ErrorContains(t, err, tt.phrase)
			_, err = h.ReadFile(folder + "/r")
			require.ErrorIs(t, err, iofs.ErrNotExist)
			_, err = h.Dir(folder).Stat(ops.StateDir)
			require.ErrorIs(t, err, iofs.ErrNotExist, "a temporary was left")
		})
	}
}

func swap(t *testing.T, h *sim.Host, to, from string) {
	b, err := h.ReadFile(folder + "/" + from)
	require.NoError(t, err)
	h.Put(folder+"/"+to, b)
}

func grow(t *testing.T, h *sim.Host, name string) {
	b, err := h.ReadFile(folder + "/" + name)
	require.NoError(t, err)
	h.Put(folder+"/"+name, append(b, 0))
}

// Nothing is replaced: neither of both names, nor what is restored to.
func TestNothingIsReplaced(t *testing.T) {
	days := week()
	for _, taken := range []string{"b", "b.map"} {
		h, _ := store(t, days[:1])
		h.Put(folder+"/"+taken, []byte("mine"))
		_, err := days[1].make(h, "b")
		require.ErrorIs(t, err, iofs.ErrExist)
		got, err := h.ReadFile(folder + "/" + taken)
		require.NoError(t, err)
		require.Equal(t, "mine", string(got))
	}
	h, _ := store(t, days[:1])
	h.Put(folder+"/r", []byte("mine"))
	_, err := restore(h, "r", "a")
	require.ErrorIs(t, err, iofs.ErrExist)
}

// Any byte of a map that is another, any end that is earlier, and any byte that a
// range keeps: the restore is refused, or is what it was.
func TestDamageIsSeen(t *testing.T) {
	days := week()
	h, _ := store(t, days[:2])
	want := days[1].is
	text, err := h.ReadFile(folder + "/b.map")
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 1))
	try := func(name string, b []byte, mayHold bool) {
		c := h.Clone()
		c.Put(folder+"/"+name, b)
		got, err := restore(c, "r", "a", "b")
		if err == nil {
			require.True(t, mayHold, "%s: damage was not seen", name)
			require.True(t, bytes.Equal(want, got))
		}
	}
	for i := range text {
		try("b.map", text[:i], false)
		flipped := append([]byte(nil), text...)
		flipped[i] ^= 1 << rng.IntN(8)
		try("b.map", flipped, bytes.HasSuffix(text[:i+1], []byte("\n")) || strings.EqualFold(string(text), string(flipped)))
	}
	data, err := h.ReadFile(folder + "/b")
	require.NoError(t, err)
	for range 200 {
		for _, r := range days[1].ranges {
			flipped := append([]byte(nil), data...)
			flipped[r.Off+rng.Int64N(r.Len)] ^= 1 << rng.IntN(8)
			try("b", flipped, false)
		}
	}
}

// Wherever the power goes there is the backup, or none that could be restored; and
// once it was answered it is there.
func TestBackupsAfterAPowerCut(t *testing.T) {
	days := week()
	base, _ := store(t, days[:1])
	job := crash.Job{
		Do: func(h *sim.Host) error { _, err := days[1].make(h, "b"); return err },
		Judge: func(h *sim.Host, done bool) error {
			got, err := restore(h, "r", "a", "b")
			switch {
			case err == nil && !bytes.Equal(got, days[1].is):
				return errors.New("another content")
			case done && err != nil, err != nil && !errors.Is(err, iofs.ErrNotExist):
				return err // a backup that has both of its names is whole
			}
			return nil
		},
	}
	n, err := job.Run(base, crash.Options{})
	require.NoError(t, err)
	require.Greater(t, n.States, 20)
	for _, label := range []string{"backup.data", "backup.map", "create.name"} {
		_, err := job.Run(base, crash.Options{}, label)
		require.Error(t, err, label)
	}
}

// The same of what is restored.
func TestRestoresAfterAPowerCut(t *testing.T) {
	days := week()
	base, names := store(t, days)
	job := crash.Job{
		Do: func(h *sim.Host) error { _, err := restore(h, "r", names...); return err },
		Judge: func(h *sim.Host, done bool) error {
			got, err := h.ReadFile(folder + "/r")
			switch {
			case err == nil && !bytes.Equal(got, days[len(days)-1].is):
				return errors.New("another content")
			case done:
				return err
			}
			return nil
		},
	}
	_, err := job.Run(base, crash.Options{})
	require.NoError(t, err)
	for _, label := range []string{"restore.data", "create.name"} {
		_, err := job.Run(base, crash.Options{}, label)
		require.Error(t, err, label)
	}
}

// A source that fails, or a host that does: an error, and nothing is left.
func TestFailuresLeaveNothing(t *testing.T) {
	days := week()
	base, _ := store(t, days[:1])
	failed := 0
	for n := 1; ; n++ {
		h := base.Clone()
		calls, wrong := 0, errors.New("wrong")
		h.SetFault(func(c sim.Call) error {
			if calls++; calls == n {
				return wrong
			}
			return nil
		})
		_, err := days[1].make(h, "b")
		h.SetFault(nil)
		if calls < n {
			require.NoError(t, err)
			break
		}
		got, rerr := restore(h, "r", "a", "b")
		if err == nil || rerr == nil {
			require.NoError(t, rerr)
			require.True(t, bytes.Equal(days[1].is, got))
			continue
		}
		failed++
		require.ErrorIs(t, err, wrong)
	}
	require.Greater(t, failed, 10)
}

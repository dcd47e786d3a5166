package ops_test

import (
	"bytes"
	iofs "io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/fixture"
	"vhdfs/test/sim"
	"vhdfs/vhdx"
)

// Whatever changes something can be asked what it would do.
func TestEveryOperationThatWritesPlans(t *testing.T) {
	for _, o := range ops.All {
		if o.Writes || o.WritesIf != nil {
			require.True(t, o.Plans, o.Name)
		}
	}
}

func TestDryRunOfMaking(t *testing.T) {
	for _, tt := range []struct {
		op, image, request string
		format             any
		typ                any
		size, move         int64
		least, most        int64 // of the space needed
	}{
		{"create", ".", "path=n.vhdx size=5G", "vhdx", "dynamic", 5 * gib, 0, 64 << 10, 4 * mib},
		{"create", ".", "path=n.vhdx size=5G type=fixed", "vhdx", "fixed", 5 * gib, 0, 5 * gib, 5*gib + 4*mib},
		{"create", ".", "path=n.vhd size=10M type=fixed", "vhd", "fixed", 10 * mib, 0, 10486272, 10486272},
		{"create", ".", "path=n.vhdx parent=1.vhdx", "vhdx", "differencing", 8 * mib, 0, 64 << 10, 4 * mib},
		{"create", ".", "path=n.vhdx source=s.vhdx", "vhdx", "dynamic", 64 * mib, 9 * mib, 9 * mib, 13 * mib},
		{"create-floppy", ".", "path=n.vfd", "vfd", nil, 1474560, 0, 0, 0},
		{"convert", "s.vhdx", "path=n.raw", "raw", nil, 64 * mib, 9 * mib, 9 * mib, 10 * mib},
		{"convert", "s.vhdx", "path=n.vhd", "vhd", "dynamic", 64 * mib, 9 * mib, 9 * mib, 10 * mib},
		{"convert", "s.vhdx", "path=n.vhd type=fixed", "vhd", "fixed", 64 * mib, 9 * mib, 64 * mib, 64*mib + 512},
	} {
		t.Run(tt.op+" "+tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 1, 512)
			w.put("/vms/s.vhdx", zerosInside())
			before, changes := w.hostNames("/vms"), w.host.Changes()
			a := w.ask(tt.op, tt.image, tt.request+" dryrun=true")
			require.NoError(t, a.Err)
			require.Equal(t, before, w.hostNames("/vms"))
			require.Equal(t, changes, w.host.Changes())
			name := "/vms/" + strings.TrimPrefix(strings.Fields(tt.request)[0], "path=")
			for field, want := range map[string]any{
				"Path": name, "Format": tt.format, "Type": tt.typ, "DryRun": true,
				"Makes": []string{name}, "SizeAfter": tt.size, "BytesToMove": tt.move, "SpaceFree": nil,
			} {
				require.Equal(t, want, fieldOf(a, field), field)
			}
			need := fieldOf(a, "SpaceNeeded").(int64)
			require.GreaterOrEqual(t, need, tt.least)
			require.LessOrEqual(t, need, tt.most)

			used := w.host.Used()
			require.NoError(t, w.ask(tt.op, tt.image, tt.request).Err)
			require.LessOrEqual(t, w.host.Used()-used, need+16<<10, "it takes no more than it said")
		})
	}
}

func fieldOf(a ops.Answer, name string) any {
	if i := slices.IndexFunc(a.Fields, func(f ops.Field) bool { return f.Name == name }); i >= 0 {
		return a.Fields[i].Value
	}
	return nil
}

// zerosInside holds a mebibyte of data and eight of stored zeros.
func zerosInside() []byte {
	return fixture.VHDX{Size: 64 * mib, BlockSize: mib, Writes: []fixture.Write{
		{Off: 0, Data: bytes.Repeat([]byte{1}, mib)}, {Off: 40 * mib, Data: make([]byte, 8*mib)}}}.Bytes()
}

// What a format cannot have is refused as it would be for real.
func TestDryRunRefuses(t *testing.T) {
	for _, tt := range []struct {
		request string
		class   error
	}{
		{"path=n.vhdx size=1G block=3M", ops.ErrUsage},
		{"path=n.vhd size=2190433320961", ops.ErrUsage},
		{"path=1.vhdx size=1G", iofs.ErrExist},
		{"path=none/n.vhdx size=1G", iofs.ErrNotExist},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			fixtureChain(w, "vhdx", 1, 512)
			require.ErrorIs(t, w.ask("create", ".", tt.request+" dryrun=true").Err, tt.class)
		})
	}
}

func TestSpaceIsCheckedFirst(t *testing.T) {
	for _, tt := range []struct {
		op, request string
		free        int64
		short       bool
	}{
		{"create", "path=n.vhdx size=1G type=fixed", gib, true},
		{"create", "path=n.vhdx size=1G type=fixed", gib + 5*mib, false},
		{"create", "path=n.vhdx size=64T", 8 * mib, false},
		{"convert", "path=n.raw", mib - 1, true},
		{"convert", "path=n.raw", mib + 64<<10, false}, // its stored zeros need none
		{"convert", "path=n.vhd type=fixed", 63 * mib, true},
	} {
		t.Run(tt.request, func(t *testing.T) {
			w := makingWorld(t)
			w.put("/vms/s.vhdx", zerosInside())
			w.host.SetCapacity(w.host.Used() + tt.free)
			changes := w.host.Changes()
			a := w.ask(tt.op, "s.vhdx", tt.request)
			if !tt.short {
				require.NoError(t, a.Err)
				return
			}
			require.ErrorIs(t, a.Err, syscall.ENOSPC)
			require.Regexp(t, `/vms/n\.\w+ needs \d+ bytes, the host has \d+ left`, a.Sentence())
			require.Equal(t, changes, w.host.Changes(), "nothing was begun")
			dry := w.ask(tt.op, "s.vhdx", tt.request+" dryrun=true")
			require.ErrorIs(t, dry.Err, syscall.ENOSPC)
			require.Greater(t, fieldOf(dry, "SpaceNeeded"), fieldOf(dry, "SpaceFree"))
		})
	}
}

// A host that says that its files can share space, and keeps its word or does not.
type sharingDir struct {
	ops.Dir
	clones bool
}

func (d sharingDir) SharesSpace(string) bool { return true }

func (d sharingDir) Create(name string, perm uint32) (ops.File, error) {
	f, err := d.Dir.Create(name, perm)
	if d.clones && err == nil {
		f = sharingFile{f}
	}
	return f, err
}

// sharingFile clones into a hole.
type sharingFile struct{ ops.File }

func (sharingFile) Clone(_ int64, _ ops.File, _, _ int64) error { return nil }

// What a raw file shares with the image needs no space. Where there is too little for
// a copy, a host that does not share after all ends it before it has begun.
func TestSharedSpaceIsNotNeeded(t *testing.T) {
	for _, tt := range []struct {
		name   string
		clones bool
		free   int64
		short  bool
	}{
		{"shares", true, mib / 2, false},
		{"shares, with less than its books take", true, 4 << 10, true},
		{"does not share after all", false, mib / 2, true},
		{"does not share, and has space", false, 16 * mib, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := makingWorld(t)
			w.put("/vms/s.vhdx", zerosInside())
			o := w.options()
			o.Top, o.Formats = sharingDir{w.dirs["/vms"], tt.clones}, []*ops.Format{vhdx.Format}
			w.lib = ops.NewLibrary(o)
			w.host.SetCapacity(w.host.Used() + tt.free)
			dry := w.ask("convert", "s.vhdx", "path=n.raw dryrun=true")
			require.Less(t, fieldOf(dry, "SpaceNeeded"), int64(mib/2))
			a := w.ask("convert", "s.vhdx", "path=n.raw")
			if !tt.short {
				require.NoError(t, a.Err)
				return
			}
			require.ErrorIs(t, a.Err, syscall.ENOSPC)
			require.Regexp(t, `/vms/n\.raw needs \d+ bytes, the host has \d+ left`, a.Sentence())
			require.Equal(t, []string{"s.vhdx"}, w.hostNames("/vms"))
		})
	}
}

const stale = "/vms/.vhdfs-state/01234567-89ab-cdef-0123-456789abcdef.new"

// What a killed operation left goes with the next one that uses the folder.
func TestStaleTemporariesAreSwept(t *testing.T) {
	w := makingWorld(t)
	w.put(stale, make([]byte, 100))
	require.NoError(t, w.ask("create", ".", "path=n.vhdx size=1G").Err)
	require.Equal(t, []string{"n.vhdx"}, w.hostNames("/vms"))
}

func TestSweepLeavesWhatIsNotStale(t *testing.T) {
	for _, tt := range []struct {
		name string
		held bool
	}{
		{"01234567-89ab-cdef-0123-456789abcdef.new", true},
		{"01234567-89ab-cdef-0123-456789abcdef.merge", false},
		{"mine.new", false},
		{"log", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := makingWorld(t)
			w.put("/vms/.vhdfs-state/"+tt.name, make([]byte, 100))
			if tt.held {
				f, err := w.dirs["/vms"].Open(".vhdfs-state/"+tt.name, ops.Write)
				require.NoError(t, err)
				require.NoError(t, f.Lock(true))
				defer f.Close()
			}
			require.NoError(t, w.ask("create", ".", "path=n.vhdx size=1G").Err)
			require.Equal(t, []string{tt.name}, w.hostNames("/vms/.vhdfs-state"))
		})
	}
}

// A temporary that somebody sweeps before it is locked is made again; one that is
// locked nobody sweeps.
func TestTemporariesAgainstSweeps(t *testing.T) {
	w := makingWorld(t)
	sweeps, swept := 0, 0
	other := w.host.Dir("/vms")
	w.host.SetFault(func(c sim.Call) error {
		mine := strings.HasSuffix(c.Path, ".new")
		if mine && (c.Op == sim.OpLock && sweeps == 0 || c.Op == sim.OpWrite && sweeps == 1) {
			sweeps++
			f, err := other.Open(strings.TrimPrefix(c.Path, "/vms/"), ops.Write)
			if err == nil && f.Lock(true) == nil {
				swept++
				_ = other.Remove(strings.TrimPrefix(c.Path, "/vms/"))
			}
			_ = f.Close()
		}
		return nil
	})
	require.NoError(t, w.ask("create", ".", "path=n.vhdx size=1G").Err)
	require.Equal(t, 2, sweeps)
	require.Equal(t, 1, swept)
	w.host.SetFault(nil)
	require.Equal(t, []string{"n.vhdx"}, w.hostNames("/vms"))
	require.NoError(t, w.do("check", "n.vhdx").Err)
}

// Where files have no locks nothing is swept, and everything goes on.
func TestTemporariesWithoutLocks(t *testing.T) {
	w := makingWorld(t)
	w.put(stale, make([]byte, 100))
	w.host.SetFault(func(c sim.Call) error {
		if c.Op == sim.OpLock && strings.HasSuffix(c.Path, ".new") {
			return syscall.ENOLCK
		}
		return nil
	})
	require.NoError(t, w.ask("create", ".", "path=n.vhdx size=1G").Err)
	require.Len(t, w.hostNames("/vms/.vhdfs-state"), 1)
}

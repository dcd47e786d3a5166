package set_test

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// A set file that is damaged is made anew from its disks; the old one is kept.
func TestRebuild(t *testing.T) {
	s, err := prepared(change{name: "second snapshot"})
	require.NoError(t, err)
	found, err := s.lib.Inspect(s.lib.Top(setName))
	require.NoError(t, err)
	b := s.host.Bytes("/vms/" + setName)
	b.Write(0x30000, make([]byte, 0x8200))
	require.ErrorIs(t, s.check(), ops.ErrCorrupt)
	require.NoError(t, s.ask("check", setName, "repair=true"))
	now, err := s.lib.Inspect(s.lib.Top(setName))
	require.NoError(t, err)
	require.Equal(t, found.Set.Leaf, now.Set.Leaf)
	require.Len(t, now.Set.Snapshots, 2)
	for i, n := range now.Set.Snapshots {
		require.Equal(t, found.Set.Snapshots[i].Path, n.Path)
		require.NoError(t, s.ask("set-snapshot", setName, "snapshot="+n.ID.String()+" label="+found.Set.Snapshots[i].Label))
	}
	require.NoError(t, s.check())
	require.NoError(t, s.write(rand.New(rand.NewPCG(1, 2))))
	require.NoError(t, s.check())
	names, err := s.names()
	require.NoError(t, err)
	require.Len(t, names, 5, "three disks, the set and the damaged file")
}

// Which of two disks is the active one is not guessed.
func TestRebuildDoesNotGuess(t *testing.T) {
	s, err := prepared(change{name: "second snapshot"})
	require.NoError(t, err)
	require.NoError(t, s.ask("apply", setName, "snapshot=s1 keep=k"))
	s.host.Bytes("/vms/"+setName).Write(0x30000, make([]byte, 0x8200))
	before, err := s.names()
	require.NoError(t, err)
	require.ErrorIs(t, s.ask("check", setName, "repair=true"), ops.ErrUsage)
	after, err := s.names()
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// lost is a set with the snapshots s1 and s2 whose file is gone.
func lost(t *testing.T) *scene {
	s, err := prepared(change{name: "second snapshot"})
	require.NoError(t, err)
	require.NoError(t, s.host.Dir("/vms").Remove(setName))
	return s
}

const remake = "path=d.vhds rebuild=true"

// The file of a set that is gone is made anew from its disks; those of a set with a
// name that begins alike are others.
func TestLostSet(t *testing.T) {
	s, err := prepared(change{name: "second snapshot"})
	require.NoError(t, err)
	require.NoError(t, s.ask("create", ".", "path=d_x.vhds size=3M block=1M"))
	require.ErrorIs(t, s.ask("create", ".", remake), iofs.ErrExist)
	before := s.found(t, setName).Set
	require.NoError(t, s.host.Dir("/vms").Remove(setName))
	a, err := s.answer("create", ".", remake)
	require.NoError(t, err)
	now := s.found(t, setName).Set
	require.Equal(t, before.Leaf, now.Leaf)
	for i, n := range now.Snapshots {
		require.Equal(t, before.Snapshots[i].Path, n.Path)
		require.Equal(t, "/vms/"+n.Path, a.Fields[2].Value.([]string)[i])
		require.NoError(t, s.ask("set-snapshot", setName, "snapshot="+n.ID.String()+" label="+before.Snapshots[i].Label))
	}
	require.NoError(t, errors.Join(s.check(), s.write(seeded(1)), s.check(), take("new")(s), s.check(), s.alone(t), s.takenApart(true)))
}

// alone removes the other set.
func (s *scene) alone(t *testing.T) error {
	for _, n := range []string{"d_x.vhds", s.found(t, "d_x.vhds").Set.Leaf} {
		if err := s.host.Dir("/vms").Remove(n); err != nil {
			return err
		}
	}
	return nil
}

// What is not one set by ids and links is made none of.
func TestLostSetIsNotGuessed(t *testing.T) {
	move := func(from, to string) func(t *testing.T, s *scene) {
		return func(t *testing.T, s *scene) { require.NoError(t, s.host.Dir("/vms").Rename(from, to)) }
	}
	for _, tt := range []struct {
		name, request string
		make          func(t *testing.T, s *scene)
		want          error
	}{
		{"no disks", "path=e.vhds rebuild=true", move(setName, "aside"), ops.ErrParentMissing},
		{"a disk", "path=d.vhdx rebuild=true", move(setName, "aside"), ops.ErrUsage},
		{"a size", remake + " size=3M", move(setName, "aside"), ops.ErrUsage},
		{"a leaf of a new set", "path=e.vhds size=3M leaf=o.avhdx", func(*testing.T, *scene) {}, ops.ErrUsage},
		{"the set has another name", remake, move(setName, "e.vhds"), errors.ErrUnsupported},
		{"two may be the active one", remake, func(t *testing.T, s *scene) {
			require.NoError(t, s.ask("apply", setName, "snapshot=s1 keep=k"))
			move(setName, "aside")(t, s)
		}, ops.ErrUsage},
		{"a disk is gone", remake, func(t *testing.T, s *scene) {
			move(s.found(t, setName).Set.Snapshot("s1").Path, "aside")(t, s)
			require.NoError(t, s.host.Dir("/vms").Remove(setName))
		}, ops.ErrParentMissing},
		{"a disk was written since", remake, func(t *testing.T, s *scene) {
			set := s.found(t, setName).Set
			require.NoError(t, s.ask("create", ".", "path=o.vhdx size=3M block=1M"))
			s.put(t, set.Snapshot("s1").Path, s.file(t, "o.vhdx"))
			require.NoError(t, s.host.Dir("/vms").Remove(setName))
		}, ops.ErrParentMismatch},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := prepared(change{name: "second snapshot"})
			require.NoError(t, err)
			tt.make(t, s)
			before, err := s.names()
			require.NoError(t, err)
			require.ErrorIs(t, s.ask("create", ".", tt.request), tt.want)
			after, err := s.names()
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}

// Where several disks may be the active one the request says which: no other state is
// lost by that, also where it says another one than before.
func TestLostSetWithBranches(t *testing.T) {
	for _, active := range []string{"the active disk", "k"} {
		t.Run(active, func(t *testing.T) {
			s, err := prepared(change{name: "second snapshot, nobody there"})
			require.NoError(t, err)
			kept := s.leaf
			require.NoError(t, s.ask("apply", setName, "snapshot=s1 keep=k"))
			s.leaf, s.snaps["k"], s.kept["k"] = s.snaps["s1"], kept, true
			require.NoError(t, errors.Join(s.write(seeded(8)), s.close(), s.check()))
			before := s.found(t, setName).Set
			leaf, labels := before.Leaf, map[string]string{}
			for _, n := range before.Snapshots {
				labels[n.Path] = n.Label
			}
			if active == "k" {
				leaf = before.Snapshot("k").Path
				delete(labels, leaf)
				labels[before.Leaf] = "former"
				s.snaps["former"], s.leaf = s.leaf, kept
				delete(s.snaps, "k")
			}
			require.NoError(t, s.host.Dir("/vms").Remove(setName))
			err = s.ask("create", ".", remake)
			require.ErrorIs(t, err, ops.ErrUsage)
			require.Contains(t, err.Error(), leaf)
			for _, wrong := range []string{before.Snapshot("s2").Path, "o.vhdx", setName} {
				require.ErrorIs(t, s.ask("create", ".", remake+" leaf="+wrong), ops.ErrUsage)
			}
			require.NoError(t, s.ask("create", ".", remake+" leaf="+leaf))
			now := s.found(t, setName).Set
			require.Equal(t, leaf, now.Leaf)
			require.Len(t, now.Snapshots, 3)
			for _, n := range now.Snapshots {
				require.NoError(t, s.ask("set-snapshot", setName, fmt.Sprintf("snapshot=%s label=%q", n.ID, labels[n.Path])))
			}
			now = s.found(t, setName).Set
			require.Equal(t, now.Snapshot("s1").ID, now.Snapshot("s2").Parent)
			require.NoError(t, errors.Join(s.check(), s.write(seeded(9)), take("new")(s), s.check(), s.takenApart(true)))
		})
	}
}

// Disks that an optimize left half merged are none to make a set of before that is
// over: merge ends it without the set.
func TestLostSetInOptimize(t *testing.T) {
	c := change{name: "optimize, the leaf goes"}
	for k := 1; ; k++ {
		s, err := prepared(c)
		require.NoError(t, err)
		n := 0
		s.host.SetFault(func(sim.Call) error {
			if n++; n >= k {
				return syscall.EIO
			}
			return nil
		})
		err = s.ask("optimize", setName, "")
		s.host.SetFault(nil)
		require.Error(t, err)
		leaf := s.found(t, setName).Set.Leaf
		require.NoError(t, s.lib.Close())
		s.lib = library(s.host)
		p, err := s.lib.MergePending(s.lib.Top(leaf))
		require.NoError(t, err)
		if p == nil {
			continue
		}
		require.NoError(t, s.host.Dir("/vms").Remove(setName))
		require.ErrorIs(t, s.ask("create", ".", remake), ops.ErrBusy)
		require.NoError(t, s.ask("merge", leaf, ""))
		require.NoError(t, s.ask("create", ".", remake))
		require.NoError(t, s.same(s.lib.Top(setName), s.leaf))
		return
	}
}

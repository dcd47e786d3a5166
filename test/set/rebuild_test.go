package set_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
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

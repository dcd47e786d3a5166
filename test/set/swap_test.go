package set_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

// put makes the bytes of one file those of another.
func (s *scene) put(t *testing.T, into string, b []byte) {
	t.Helper()
	s.host.Bytes("/vms/" + into).Truncate(int64(len(b)))
	s.host.Bytes("/vms/"+into).Write(0, b)
}

func (s *scene) file(t *testing.T, name string) []byte {
	t.Helper()
	b, err := s.host.ReadFile("/vms/" + name)
	require.NoError(t, err)
	return b
}

func (s *scene) found(t *testing.T, name string) *ops.Found {
	t.Helper()
	found, err := s.lib.Inspect(s.lib.Top(name))
	require.NoError(t, err)
	return found
}

// snapshot reads as what opens it in a mount does.
func (s *scene) snapshot(t *testing.T, label string) (*ops.Found, error) {
	t.Helper()
	set := s.found(t, setName)
	require.NotNil(t, set.Set)
	return s.lib.InspectSnapshot(set, set.Set.Snapshot(label))
}

// swapped is a set with the snapshots s1 and s2, and, unless the last snapshot was
// the last operation, s3 kept beside them, in whose folder some files are not what
// they were.
func swapped(t *testing.T, snapshotLast bool, swap func(s *scene, leaf, s1, s2 string)) *scene {
	t.Helper()
	s, err := prepared(change{name: "second snapshot"})
	require.NoError(t, err)
	if !snapshotLast {
		require.NoError(t, s.ask("apply", setName, "snapshot=s1 keep=s3"))
	}
	set := s.found(t, setName).Set
	require.NoError(t, s.ask("create", ".", "path=o.vhdx size=3M block=1M"))
	swap(s, set.Leaf, set.Snapshot("s1").Path, set.Snapshot("s2").Path)
	require.NoError(t, s.lib.Close())
	s.lib = library(s.host)
	return s
}

// names says that an error names a file and both ids.
func names(t *testing.T, err error, file string, found, expected ops.GUID) {
	t.Helper()
	require.ErrorIs(t, err, ops.ErrChanged)
	for _, want := range []string{file, found.String(), expected.String()} {
		require.Contains(t, err.Error(), want)
	}
}

// Another disk in the place of the active one is told, and nothing is done with it.
func TestSwappedActiveDisk(t *testing.T) {
	t.Run("after a snapshot", func(t *testing.T) { swappedActive(t, true) })
	t.Run("after an apply", func(t *testing.T) { swappedActive(t, false) })
}

func swappedActive(t *testing.T, snapshotLast bool) {
	var leaf string
	var was, is ops.GUID
	s := swapped(t, snapshotLast, func(s *scene, active, _, _ string) {
		leaf, was, is = active, s.found(t, active).Info.DiskID, s.found(t, "o.vhdx").Info.DiskID
		s.put(t, leaf, s.file(t, "o.vhdx"))
	})
	before := s.file(t, leaf)
	_, err := s.lib.Open(s.lib.Top(setName), ops.Read)
	names(t, err, leaf, is, was)
	for _, r := range [][2]string{
		{"snapshot", "new"}, {"resize", "size=4M"}, {"convert", "path=c.vhdx"}, {"apply", "s1"}, {"set", "id=11111111-2222-3333-4444-555555555555"},
	} {
		names(t, s.ask(r[0], setName, r[1]), leaf, is, was)
	}
	require.ErrorIs(t, s.ask("check", setName, "repair=true"), ops.ErrChanged)
	require.Equal(t, before, s.file(t, leaf))
}

// A copy of a snapshot's file in the place of the active disk has the disk's id, and
// not one of its own.
func TestSnapshotInPlaceOfActiveDisk(t *testing.T) {
	s := swapped(t, false, func(s *scene, leaf, s1, s2 string) {
		a, b := s.file(t, leaf), s.file(t, s2)
		s.put(t, leaf, b)
		s.put(t, s2, a)
	})
	_, err := s.lib.Open(s.lib.Top(setName), ops.Read)
	require.ErrorIs(t, err, ops.ErrChanged)
	_, err = s.snapshot(t, "s2")
	require.ErrorIs(t, err, ops.ErrChanged)
	_, err = s.snapshot(t, "s1")
	require.NoError(t, err)
}

// Another file in the place of a snapshot's is told where that is asked for, and is
// neither a disk's parent, nor merged, nor removed.
func TestSwappedSnapshots(t *testing.T) {
	for _, tt := range []struct {
		name, label string
		alone       bool // nothing else needs the file
		by          func(s *scene, s1, s2 string) []byte
	}{
		{"another disk", "s2", false, func(s *scene, _, _ string) []byte { return s.file(t, "o.vhdx") }},
		{"another state of the disk", "s2", false, func(s *scene, s1, _ string) []byte { return s.file(t, s1) }},
		{"a state kept beside", "s3", true, func(s *scene, s1, _ string) []byte { return s.file(t, s1) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var file string
			s := swapped(t, false, func(s *scene, _, s1, s2 string) {
				file = s.found(t, setName).Set.Snapshot(tt.label).Path
				s.put(t, file, tt.by(s, s1, s2))
			})
			before := s.file(t, file)
			set := s.found(t, setName).Set
			_, err := s.snapshot(t, tt.label)
			require.ErrorIs(t, err, ops.ErrChanged)
			require.Contains(t, err.Error(), file)
			require.ErrorIs(t, s.ask("apply", setName, tt.label), ops.ErrChanged)
			require.Equal(t, set.Leaf, s.found(t, setName).Set.Leaf)
			a, err := s.answer("check", setName, "")
			require.ErrorIs(t, err, ops.ErrCorrupt)
			require.Contains(t, anomalies(a), "vhds.file")

			require.NoError(t, s.ask("delete", setName, tt.label))
			a, err = s.answer("optimize", setName, "")
			require.NoError(t, err)
			i := slices.IndexFunc(a.Fields, func(f ops.Field) bool { return f.Name == "Skipped" })
			require.Contains(t, strings.Join(a.Fields[i].Value.([]string), "; "), file)
			require.Equal(t, before, s.file(t, file))
			require.NoError(t, s.same(s.lib.Top(setName), s.snaps["s1"]), "the disk itself has s1 alone below it")
		})
	}
}

// A snapshot's file as it was before it was written last is a child of the same
// parent: it is not folded into that.
func TestFormerFileIsNotMerged(t *testing.T) {
	s, err := newScene()
	require.NoError(t, err)
	rng := seeded(6)
	require.NoError(t, errors.Join(s.write(rng), take("s1")(s), s.write(rng), s.close()))
	middle := s.found(t, setName).Set.Leaf
	former := s.file(t, middle)
	require.NoError(t, errors.Join(s.write(rng), take("s2")(s), s.close(), remove("s1")(s)))
	s.put(t, middle, former)
	base := s.found(t, setName).Set.Files[0].Name
	before := s.file(t, base)
	a, err := s.answer("optimize", setName, "")
	require.NoError(t, err)
	i := slices.IndexFunc(a.Fields, func(f ops.Field) bool { return f.Name == "Skipped" })
	require.Contains(t, strings.Join(a.Fields[i].Value.([]string), "; "), middle)
	require.Equal(t, before, s.file(t, base))
}

func anomalies(a ops.Answer) []string {
	var list []string
	for _, f := range a.Fields {
		if reports, ok := f.Value.([]ops.Report); ok {
			for _, r := range reports {
				for _, x := range r.Anomalies {
					list = append(list, x.Name)
				}
			}
		}
	}
	return list
}

// The disk of a set is given another id, which the set knows it by from then on.
func TestDiskIDOfSet(t *testing.T) {
	const id = "id=11111111-2222-3333-4444-555555555555"
	s, err := prepared(change{name: "delete", open: true})
	require.NoError(t, err)
	require.ErrorIs(t, s.ask("set", setName, id), ops.ErrBusy, "a guest has it open")
	was := s.found(t, setName).Set.Files
	require.NoError(t, s.close())
	require.NoError(t, s.ask("set", setName, id))
	require.Equal(t, id[3:], s.found(t, setName).Info.DiskID.String())
	now := s.found(t, setName).Set.Files
	i := slices.IndexFunc(now, func(f ops.SetFile) bool { return f.DiskID.String() == id[3:] })
	require.Equal(t, s.found(t, setName).Set.Leaf, now[i].Name)
	require.Len(t, now, len(was))
	require.NoError(t, errors.Join(s.check(), s.ask("snapshot", setName, "new")))
	s.snaps["new"] = s.leaf
	require.NoError(t, s.check())
	require.NoError(t, s.ask("apply", setName, "s1"), "its file has the old id")
	s.leaf = s.snaps["s1"]
	require.NoError(t, s.check())
	require.NoError(t, s.takenApart(true))
}

package set_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// Who opens a set while its active disk is discarded, or looks for its file, finds the
// disk that took its place.
func TestSetIsOpenedWhileItsDiskGoes(t *testing.T) {
	s, err := prepared(change{name: "apply"})
	require.NoError(t, err)
	done := make(chan struct{})
	var looking sync.WaitGroup
	each := func(look func() error) {
		looking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := look(); err != nil && !errors.Is(err, ops.ErrBusy) {
					t.Error(err)
					return
				}
			}
		})
	}
	each(func() error {
		h, err := s.lib.Open(s.lib.Top(setName), ops.Read)
		if err != nil {
			return err
		}
		return h.Close()
	})
	each(func() error {
		found, err := s.lib.Inspect(s.lib.Top(setName))
		if err == nil && found.Err == nil {
			_, _, err = s.lib.Active(found)
		}
		return err
	})
	for range 400 {
		if err := s.ask("apply", setName, "s1"); err != nil {
			require.ErrorIs(t, err, ops.ErrBusy)
		}
	}
	close(done)
	looking.Wait()
}

// A file that is in the place of the active disk only while that is opened is not taken
// for it, although the set is whole before and after.
func TestActiveDiskIsAnotherWhileItIsOpened(t *testing.T) {
	s, err := prepared(change{name: "second snapshot, nobody there"})
	require.NoError(t, err)
	require.NoError(t, s.ask("create", ".", "path=o.vhdx size=3M block=1M"))
	leaf := s.found(t, setName).Set.Leaf
	was, is := s.found(t, leaf).Info.DiskID, s.found(t, "o.vhdx").Info.DiskID
	vms, swaps, looks := s.host.Dir("/vms"), 0, 0
	swap := func(from, to string) {
		swaps++
		require.NoError(t, vms.Rename(from, to))
	}
	s.host.SetFault(func(c sim.Call) error {
		switch {
		case c.Op != sim.OpOpen:
		case c.Path == "/vms/"+leaf && swaps == 0:
			if looks++; looks == 2 { // the first is the look
				swap(leaf, "aside")
				swap("o.vhdx", leaf)
			}
		case c.Path == "/vms/"+setName && swaps == 2:
			swap(leaf, "o.vhdx")
			swap("aside", leaf)
		}
		return nil
	})
	_, err = s.lib.Open(s.lib.Top(setName), ops.Read)
	require.Equal(t, 4, swaps)
	names(t, err, leaf, is, was)
	require.NoError(t, s.check())
}

// Who opens a set while it gets another disk has that one, and not the one that it
// had when the open began.
func TestSetGetsAnotherDiskWhileItIsOpened(t *testing.T) {
	for _, tt := range []struct {
		name, request string
		access        ops.Access
	}{
		{"snapshot", "new", ops.Read},
		{"snapshot", "new", ops.Write},
		{"apply", "s1", ops.Read},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			s, err := prepared(change{name: "second snapshot, nobody there"})
			require.NoError(t, err)
			parent, asked := "/vms/"+s.found(t, setName).Set.Snapshot("s2").Path, false
			s.host.SetFault(func(c sim.Call) error {
				if c.Op == sim.OpOpen && c.Path == parent && !asked {
					asked = true
					require.NoError(t, s.ask(tt.name, setName, tt.request))
				}
				return nil
			})
			h, err := s.lib.Open(s.lib.Top(setName), tt.access)
			require.NoError(t, err)
			s.host.SetFault(nil)
			require.True(t, asked)
			if tt.name == "apply" {
				s.leaf = s.snaps["s1"]
			} else {
				s.snaps["new"] = s.leaf
			}
			require.NoError(t, reads(h, s.leaf))
			if tt.access == ops.Write {
				b := []byte{1, 2, 3}
				_, err := h.WriteAt(b, 0)
				s.leaf = s.leaf.with(0, b)
				require.NoError(t, errors.Join(err, h.Flush()))
			}
			require.NoError(t, errors.Join(s.write(seeded(7)), reads(h, s.leaf), h.Close(), s.close(), s.check()))
		})
	}
}

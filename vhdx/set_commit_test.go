package vhdx

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/need"
	"vhdfs/test/sim"
)

// setPlain and setTaken are a set before its first snapshot and after it.
func setPlain() ops.Set { return ops.Set{Leaf: setLeaf, Creator: "vhdfs"} }

func setTaken(n int) ops.Set {
	s := setPlain()
	s.Files = []ops.SetFile{{Name: setLeaf, DiskID: ops.GUID{7}, LinkID: ops.GUID{8}}}
	for i := range n {
		name := fmt.Sprintf("disk_%d.avhdx", i)
		s.Snapshots = append(s.Snapshots, ops.SetSnapshot{ID: ops.GUID{byte(i), byte(i >> 8), 1}, Label: fmt.Sprintf("état %d", i), Type: 1,
			Path: s.Leaf, Created: time.UnixMilli(1_700_000_000_123).UTC(), TrackingID: "rctX:1"})
		s.Files = append(s.Files, ops.SetFile{Name: name})
		s.Leaf = name
	}
	return s
}

func setNew(t *testing.T, s ops.Set) (*sim.Host, ops.File) {
	t.Helper()
	h := sim.New()
	f, err := h.Dir("/d").Create("s.vhds", 0o600)
	require.NoError(t, err)
	require.NoError(t, SetFormat.CreateSet(f, s))
	require.NoError(t, h.Dir("/d").Sync(".", "test"))
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return h, f
}

// setSays compares what a file says, apart from what a commit decides itself.
func setSays(f ops.File, want ops.Set) (ops.Set, error) {
	got, err := SetFormat.Set(f)
	if err != nil {
		return got, err
	}
	a, b := got, want
	for _, s := range []*ops.Set{&a, &b} {
		s.ID, s.Sequence, s.Anomalies = ops.GUID{}, 0, nil
	}
	if !reflect.DeepEqual(a, b) {
		return got, fmt.Errorf("says %+v, want %+v", a, b)
	}
	return got, nil
}

func TestSetAsTheSample(t *testing.T) {
	sample, err := os.ReadFile(need.Corpus(t, "microsoft_WindowsProtocolTestSuites/rsvd.vhds"))
	require.NoError(t, err)
	h, _ := setNew(t, ops.Set{Leaf: "rsvd_9ac15b72-2a6d-44b2-ba7c-f5f06831c74a.avhdx"})
	made, err := h.ReadFile("/d/s.vhds")
	require.NoError(t, err)
	require.Len(t, made, len(sample))
	clear(sample[8:520])
	clear(made[8:520])
	for _, off := range []int{0x10000, 0x20000} { // the garbage of Windows and the checksum over it
		clear(sample[off+4 : off+8])
		clear(sample[off+20 : off+24])
		clear(made[off+20 : off+24])
	}
	require.Equal(t, sample, made)
}

func TestSetCommits(t *testing.T) {
	h, f := setNew(t, setPlain())
	plain, err := h.ReadFile("/d/s.vhds")
	require.NoError(t, err)
	for _, n := range []int{1, 2, 3, 900, 901, 2, 1} {
		now, err := SetFormat.Set(f)
		require.NoError(t, err)
		next := setTaken(n)
		next.Sequence = now.Sequence
		at, err := SetFormat.CommitSet(f, next)
		require.NoError(t, err)
		got, err := setSays(f, setTaken(n))
		require.NoError(t, err)
		require.Empty(t, got.Anomalies)
		require.Greater(t, got.Sequence, now.Sequence)
		require.Equal(t, got.Sequence, at)
		_, err = SetFormat.CommitSet(f, next)
		require.ErrorIs(t, err, ops.ErrChanged, "it is not what was read")
	}
	now, err := SetFormat.Set(f)
	require.NoError(t, err)
	back := setPlain()
	back.Sequence = now.Sequence
	_, err = SetFormat.CommitSet(f, back)
	require.NoError(t, err)
	again, err := h.ReadFile("/d/s.vhds")
	require.NoError(t, err)
	require.Equal(t, plain, again, "the layout of a set without snapshots, to the byte")
}

func TestSetForeignIsNotWritten(t *testing.T) {
	b := setImage(setLeaf)
	b[0x30010] = 1
	h := sim.New()
	h.Put("/d/s.vhds", b)
	f, err := h.Dir("/d").Open("s.vhds", ops.Write)
	require.NoError(t, err)
	h.Freeze()
	_, err = SetFormat.CommitSet(f, setTaken(1))
	require.ErrorIs(t, err, ops.ErrReadOnly)
	require.Zero(t, h.Refused())
	require.NoError(t, f.Close())
}

// TestSetCommitLosesPower cuts each kind of commit everywhere: the set says what it
// said or what it was to say, and can be changed again.
func TestSetCommitLosesPower(t *testing.T) {
	long, other := setTaken(40), setPlain()
	other.Leaf = "other.avhdx"
	for _, tt := range []struct {
		name   string
		before []ops.Set // the last one is what the set says
		after  ops.Set
	}{
		{"first snapshot", nil, setTaken(1)},
		{"first again", []ops.Set{setTaken(2), setPlain()}, setTaken(1)},
		{"second", []ops.Set{setTaken(1)}, setTaken(2)},
		{"third", []ops.Set{setTaken(1), setTaken(2)}, long},
		{"last goes", []ops.Set{setTaken(1), long}, other},
		{"only one goes", []ops.Set{setTaken(1)}, other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			states, err := cutSetCommit(t, tt.before, tt.after)
			require.NoError(t, err)
			require.Greater(t, states, 3)
		})
		for _, label := range []string{"vhds.mark", "vhds.own", "vhds.body", "vhds.plain", "vhds.clean"} {
			t.Run(tt.name+" without "+label, func(t *testing.T) {
				if !setSyncs(t, tt.before, tt.after, label) {
					t.Skip("not in this one")
				}
				_, err := cutSetCommit(t, tt.before, tt.after, label)
				require.Error(t, err, "the loss of a sync is seen")
			})
		}
	}
}

func setPrepared(t *testing.T, before []ops.Set) (*sim.Host, ops.File, ops.Set) {
	h, f := setNew(t, setPlain())
	was := setPlain()
	for _, was = range before {
		require.NoError(t, setCommitOn(f, was))
	}
	return h, f, was
}

func setSyncs(t *testing.T, before []ops.Set, after ops.Set, label string) bool {
	h, f, _ := setPrepared(t, before)
	n := h.SyncLabels()[label]
	require.NoError(t, setCommitOn(f, after))
	return h.SyncLabels()[label] > n
}

func setCommitOn(f ops.File, s ops.Set) error {
	now, err := SetFormat.Set(f)
	if err != nil {
		return err
	}
	s.Sequence = now.Sequence
	at, err := SetFormat.CommitSet(f, s)
	if err == nil {
		if now, err = SetFormat.Set(f); err == nil && now.Sequence != at {
			err = fmt.Errorf("is at %d, the commit said %d", now.Sequence, at)
		}
	}
	return err
}

func cutSetCommit(t *testing.T, before []ops.Set, after ops.Set, dropped ...string) (int, error) {
	t.Helper()
	h, f, was := setPrepared(t, before)
	r := crash.Recording{Base: h.Clone()}
	for _, l := range dropped {
		h.DropSync(l)
	}
	h.Record()
	require.NoError(t, setCommitOn(f, after))
	h.Ack("committed", nil)
	r.Events = h.Events()
	states := 0
	err := r.Each(5, func(s *crash.State) error {
		states++
		after, was := after, was
		host, err := s.Host()
		require.NoError(t, err)
		f, err := host.Dir("/d").Open("s.vhds", ops.Write)
		require.NoError(t, err)
		_, err = setSays(f, after)
		if err != nil && s.At < len(r.Events) {
			_, err = setSays(f, was)
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, s)
		}
		for _, next := range []ops.Set{setTaken(3), setPlain()} {
			if err := setCommitOn(f, next); err != nil {
				return fmt.Errorf("the next change: %w\n%s", err, s)
			}
			if got, err := setSays(f, next); err != nil || len(got.Anomalies) > 0 {
				return fmt.Errorf("the next change: %v, %w\n%s", got.Anomalies, err, s)
			}
		}
		return f.Close()
	})
	return states, err
}

func TestSetCommitFails(t *testing.T) {
	for _, label := range []string{"vhds.mark", "vhds.own", "vhds.body", "vhds.commit", "vhds.plain"} {
		for _, change := range [][]ops.Set{{setTaken(1)}, {setTaken(1), setTaken(2)}, {setTaken(1), setPlain()}} {
			h, f, was := setPrepared(t, change[:len(change)-1])
			h.SetFault(func(c sim.Call) error {
				if c.Label == label {
					return errors.New("broken")
				}
				return nil
			})
			err := setCommitOn(f, change[len(change)-1])
			h.SetFault(nil)
			if err == nil {
				continue // without this sync
			}
			require.Equal(t, label == "vhds.commit", errors.Is(err, ops.ErrPoisoned), "%s: %v", label, err)
			if label != "vhds.commit" {
				_, err = setSays(f, was)
				require.NoError(t, err)
			}
		}
	}
}

func TestSetOwnRejected(t *testing.T) {
	for _, tt := range []struct {
		name string
		off  int64
		b    []byte
		want string
	}{
		{"both headers", 0x30000, make([]byte, 0x8200), "both damaged"},
		{"body", 0x50000, []byte{0xff, 0xff}, "checksum"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, f := setNew(t, setTaken(1))
			h.Bytes("/d/s.vhds").Write(tt.off, tt.b)
			_, err := SetFormat.Set(f)
			mustCorrupt(t, err)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

// FuzzSetBody gives the body any bytes, under a right checksum.
func FuzzSetBody(f *testing.F) {
	for _, n := range []int{1, 3} {
		s := setTaken(n)
		f.Add(setEncodeBody(&s))
	}
	s := setTaken(2)
	s.Pending = &ops.SetPending{From: s.Leaf, Into: setLeaf}
	f.Add(setEncodeBody(&s))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := setDecodeBody(b)
		if err != nil {
			mustCorrupt(t, err)
			return
		}
		if again := setEncodeBody(&got); string(again) != string(b) {
			t.Fatalf("% x is read as % x", b, again)
		}
		if got.Leaf == "" || strings.ContainsAny(got.Leaf, "/\\\x00") {
			t.Fatalf("active disk %q", got.Leaf)
		}
	})
}

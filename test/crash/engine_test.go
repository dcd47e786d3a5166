package crash

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

// States are made and dropped by the thousand: collecting them seldom is faster.
func TestMain(m *testing.M) {
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

func toySubject(t *testing.T, bug string) (*Subject, *Prepared) {
	t.Helper()
	s := &Subject{Format: toyFormat(bug), Path: "/vms/a.toy"}
	h := sim.New()
	f, err := h.Dir("/vms").Create("a.toy", 0o600)
	require.NoError(t, err)
	require.NoError(t, s.Format.Create(f, ops.CreateSpec{}))
	require.NoError(t, f.Close())
	good := *s
	good.Format = toyFormat("")
	p, err := good.Prepare(h, Steps[1], Steps[8])
	require.NoError(t, err)
	return s, p
}

// firstViolation runs sequences until one breaks a promise.
func firstViolation(t *testing.T, s *Subject, p *Prepared, limit int, dropped ...string) (*Violation, Sequence) {
	t.Helper()
	for _, q := range Sequences(1)[:limit] {
		r, _, err := s.Record(p, q, dropped...)
		require.NoError(t, err)
		_, err = s.Run(r, p.History, Options{Deep: 50})
		var v *Violation
		if errors.As(err, &v) {
			return v, q
		}
		require.NoError(t, err)
	}
	return nil, nil
}

func TestEnginePassesARightFormat(t *testing.T) {
	s, p := toySubject(t, "")
	start, states := time.Now(), 0
	for _, q := range Sequences(1)[:30] {
		r, _, err := s.Record(p, q)
		require.NoError(t, err)
		n, err := s.Run(r, p.History, Options{Deep: 50})
		require.NoError(t, err, "%s", q)
		states += n.States + n.Deep
	}
	t.Logf("%d states, %.0f a second", states, float64(states)/time.Since(start).Seconds())
}

func TestEngineSeesEachDroppedSync(t *testing.T) {
	s, p := toySubject(t, "")
	for _, label := range []string{"toy.log", "toy.replay"} {
		v, q := firstViolation(t, s, p, 60, label)
		require.NotNil(t, v, "%s is dropped and nobody sees it", label)
		t.Logf("%s: seen by %q: %v", label, q, v)
	}
}

func TestEngineSeesBrokenFormats(t *testing.T) {
	for _, bug := range []string{"no syncs", "no crc", "close forgets", "no replay"} {
		t.Run(bug, func(t *testing.T) {
			s, p := toySubject(t, bug)
			v, _ := firstViolation(t, s, p, 100)
			require.NotNil(t, v)
		})
	}
}

// A recording of n writes has 2^n subsets, and three tears of each longer write.
func TestStatesOfAnEpoch(t *testing.T) {
	h := sim.New()
	f, err := h.Dir("/").Create("a", 0o600)
	require.NoError(t, err)
	base := h.Clone()
	h.Record()
	for i := range int64(3) {
		_, err = f.WriteAt([]byte{byte(i + 1)}, i)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync("one"))
	_, err = f.WriteAt(make([]byte, 4*sector), 0)
	require.NoError(t, err)
	seen := map[string]int{}
	r := Recording{Base: base, Events: h.Events()}
	require.NoError(t, r.Each(0, func(s *State) error {
		host, err := s.Host()
		require.NoError(t, err)
		b, err := host.ReadFile("/a")
		require.NoError(t, err)
		seen[s.Label+string(b[:min(3, len(b))])]++
		return nil
	}))
	require.Equal(t, map[string]int{
		"one": 1, "one\x01": 1, "one\x00\x02": 1, "one\x01\x02": 1, "one\x00\x00\x03": 1,
		"one\x01\x00\x03": 1, "one\x00\x02\x03": 1, "one\x01\x02\x03": 1,
		"\x01\x02\x03": 4, "\x00\x00\x00": 7,
	}, seen)
}

func TestTornWrites(t *testing.T) {
	data := make([]byte, 4*sector)
	e := sim.Event{Op: sim.OpWrite, Off: 100, Len: 4 * sector, Data: data}
	for way, want := range map[int][][2]int64{
		firstHalf:   {{100, 2 * sector}},
		lastHalf:    {{100 + 2*sector, 2 * sector}},
		evenSectors: {{100, sector}, {100 + 2*sector, sector}},
	} {
		var got [][2]int64
		for _, p := range tear(e, way, nil) {
			require.Len(t, p.Data, int(p.Len))
			got = append(got, [2]int64{p.Off, p.Len})
		}
		require.Equal(t, want, got)
	}
}

// Files other than the one that is synced lose what was written to them, and
// names are lost until their directory is synced.
func TestSyncsCoverTheirOwnFile(t *testing.T) {
	h := sim.New()
	d := h.Dir("/vms")
	base := h.Clone()
	h.Record()
	a, err := d.Create("a", 0o600)
	require.NoError(t, err)
	_, err = a.WriteAt([]byte("a"), 0)
	require.NoError(t, err)
	require.NoError(t, a.Sync("a"))
	require.NoError(t, d.Rename("a", "b"))
	require.NoError(t, d.Sync(".", "names"))
	got := map[string]int{}
	r := Recording{Base: base, Events: h.Events()}
	require.NoError(t, r.Each(0, func(s *State) error {
		host, err := s.Host()
		require.NoError(t, err)
		names := s.Label + ":"
		list, err := host.Dir("/vms").List(".")
		require.NoError(t, err)
		for _, e := range list {
			b, err := host.ReadFile("/vms/" + e.Name)
			require.NoError(t, err)
			names += e.Name + "=" + string(b)
		}
		got[names]++
		return nil
	}))
	require.Equal(t, map[string]int{
		"a:": 2, "a:a=": 1, "a:a=a": 1, // the name may last, or the byte, or both
		"names:": 1, "names:a=a": 1, "names:b=a": 2, // the name that lasts has a file
		":b=a": 1,
	}, got)
}

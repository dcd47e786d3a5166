package ops_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/crash"
	"vhdfs/test/sim"
)

const logFile = "/vms/.vhdfs-state/log"

// lines are the requests of a log as it is shown.
func lines(t *testing.T, l *ops.OpLog) []string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, l.Render(&b))
	var list []string
	for line := range strings.Lines(b.String()) {
		var v ops.LogLine
		require.NoError(t, json.Unmarshal([]byte(line), &v), "%q", line)
		list = append(list, v.Request)
	}
	return list
}

func entry(request string) ops.LogLine { return ops.LogLine{Operation: "work", Request: request} }

func TestLogLine(t *testing.T) {
	began := time.Now().Add(-2 * time.Second)
	l := ops.NewLogLine(began, ops.Caller{User: 1000, Process: 77}, "/vms/a\n.vhdx", "size=\x1b", ops.Answer{
		Operation: "Resize", Job: 12, Err: ops.Errorf(ops.ErrUsage, 0, "bad size")})
	require.GreaterOrEqual(t, l.Seconds, 2.0)
	l.Seconds, l.Time = 2.5, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	b, err := json.Marshal(l)
	require.NoError(t, err)
	require.Equal(t, `{"Time":"2026-01-02T03:04:05Z","User":1000,"Process":77,"Job":"12","Operation":"Resize","Image":"/vms/a\n.vhdx",`+
		`"Request":"size=\u001b","ReturnValue":32773,"Error":"bad size: invalid parameter.","Seconds":2.5}`, string(b))
}

// The log begins with the first operation that changes something, and holds what
// came before in this program.
func TestLogIsMadeByWhatChanges(t *testing.T) {
	h := sim.New()
	l := ops.NewOpLog(h.Dir("/vms"), false)
	require.NoError(t, l.Add(entry("check"), false))
	require.Zero(t, h.Changes())
	require.Equal(t, []string{"check"}, lines(t, l))
	require.NoError(t, l.Add(entry("resize"), true))
	require.NoError(t, l.Add(entry("check again"), false))
	want := []string{"check", "resize", "check again"}
	require.Equal(t, want, lines(t, l))
	b, err := h.ReadFile(logFile)
	require.NoError(t, err)
	require.Equal(t, 3, bytes.Count(b, []byte("\n")))

	other := ops.NewOpLog(h.Dir("/vms"), false)
	require.Equal(t, want, lines(t, other), "it survives the program")
	require.NoError(t, other.Add(entry("validate"), false))
	require.Equal(t, append(want, "validate"), lines(t, l))
}

func TestLogOfAReadOnlyMount(t *testing.T) {
	h := sim.New()
	writer, l := ops.NewOpLog(h.Dir("/vms"), false), ops.NewOpLog(h.Dir("/vms"), true)
	require.NoError(t, writer.Add(entry("resize"), true))
	changes := h.Changes()
	require.NoError(t, l.Add(entry("check"), false))
	require.Equal(t, changes, h.Changes())
	require.Equal(t, []string{"resize", "check"}, lines(t, l))
}

func TestLogThatCannotBeWritten(t *testing.T) {
	for _, tt := range []struct {
		errno         syscall.Errno
		read, changed error
	}{
		{syscall.EACCES, nil, syscall.EACCES},
		{syscall.EROFS, nil, syscall.EROFS},
		{syscall.ENOSPC, syscall.ENOSPC, syscall.ENOSPC},
	} {
		t.Run(tt.errno.Error(), func(t *testing.T) {
			h := sim.New()
			l := ops.NewOpLog(h.Dir("/vms"), false)
			require.NoError(t, l.Add(entry("first"), true))
			h.SetFault(func(c sim.Call) error {
				if c.Op == sim.OpWrite {
					return tt.errno
				}
				return nil
			})
			require.ErrorIs(t, l.Add(entry("check"), false), tt.read)
			require.ErrorIs(t, l.Add(entry("resize"), true), tt.changed)
			require.Equal(t, []string{"first", "check", "resize"}, lines(t, l))
			h.SetFault(nil)
			require.NoError(t, l.Add(entry("more"), false))
			require.Equal(t, []string{"first", "check", "resize", "more"}, lines(t, ops.NewOpLog(h.Dir("/vms"), true)))
		})
	}
}

// What is held in memory is bounded.
func TestLogInMemoryIsBounded(t *testing.T) {
	l := ops.NewOpLog(sim.New().Dir("/vms"), true)
	for i := range 1000 {
		require.NoError(t, l.Add(entry(fmt.Sprint(i)), true))
	}
	list := lines(t, l)
	require.Len(t, list, 256)
	require.Equal(t, "744", list[0])
	require.Equal(t, "999", list[255])
}

func TestLogLinesAreBounded(t *testing.T) {
	h := sim.New()
	l := ops.NewOpLog(h.Dir("/vms"), false)
	long := strings.Repeat("\x01", 1<<20)
	require.NoError(t, l.Add(ops.LogLine{Request: long, Error: long, Note: long, Image: long[:4096]}, true))
	b, err := h.ReadFile(logFile)
	require.NoError(t, err)
	require.Less(t, len(b), 64<<10)
	require.NoError(t, l.Add(entry("next"), true))
	require.Len(t, lines(t, l), 2)
}

func TestLogRotates(t *testing.T) {
	h := sim.New()
	l := ops.NewOpLog(h.Dir("/vms"), false)
	text := strings.Repeat("x", 1000)
	for i := range 1600 {
		require.NoError(t, l.Add(entry(fmt.Sprintf("%04d%s", i, text)), i == 0))
	}
	list := lines(t, l)
	require.Greater(t, len(list), 450)
	require.Less(t, len(list), 1000)
	for i := range list {
		require.Equal(t, fmt.Sprintf("%04d", 1600-len(list)+i), list[i][:4])
	}
	for _, name := range []string{logFile, logFile + ".1"} {
		b, err := h.ReadFile(name)
		require.NoError(t, err)
		require.LessOrEqual(t, len(b), 512<<10)
	}
	d := h.Dir("/vms/.vhdfs-state")
	entries, err := d.List(".")
	require.NoError(t, err)
	require.Len(t, entries, 2)
}

// What a crash tore is cut off, and the log goes on.
func TestLogRepairsItsTail(t *testing.T) {
	good := `{"Request":"good"}` + "\n"
	for name, tail := range map[string]string{
		"whole":             "",
		"no end":            `{"Request":"to`,
		"zeros":             strings.Repeat("\x00", 700),
		"zeros, then bytes": strings.Repeat("\x00", 512) + `rn"}` + "\n",
		"a lost middle":     `{"Request":"` + strings.Repeat("\x00", 512) + `"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			h := sim.New()
			h.Put(logFile, []byte(good+tail))
			l := ops.NewOpLog(h.Dir("/vms"), false)
			require.Equal(t, []string{"good"}, lines(t, l))
			require.NoError(t, l.Add(entry("next"), false))
			require.Equal(t, []string{"good", "next"}, lines(t, l))
			b, err := h.ReadFile(logFile)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(b), good+`{"Time"`), "%q", b)
			require.Equal(t, 2, bytes.Count(b, []byte("}\n")))
			require.True(t, bytes.HasSuffix(b, []byte("}\n")))
		})
	}
	h := sim.New()
	h.Put(logFile, bytes.Repeat([]byte("no log "), 100))
	l := ops.NewOpLog(h.Dir("/vms"), false)
	require.NoError(t, l.Add(entry("next"), false))
	require.Equal(t, []string{"next"}, lines(t, l))
}

// Whatever a power cut leaves: what was added is there, in order, as whole lines.
func TestLogAfterPowerCuts(t *testing.T) {
	for _, start := range []string{"", "torn", "full"} {
		t.Run(start, func(t *testing.T) {
			h := sim.New()
			h.Dir("/vms")
			l := ops.NewOpLog(h.Dir("/vms"), false)
			kept := []string{}
			add := func(s string) {
				require.NoError(t, l.Add(entry(s), true))
				h.Ack(s, nil)
			}
			switch start {
			case "torn":
				h.Put(logFile, []byte(`{"Request":"one"}`+"\n"+`{"Request":"`+strings.Repeat("x", 3000)))
				kept = []string{"one"}
			case "full":
				h.Put(logFile+".1", []byte(`{"Request":"older"}`+"\n"))
				h.Put(logFile, append([]byte(`{"Request":"full"}`+"\n"), bytes.Repeat([]byte(`{"Request":"`+strings.Repeat("x", 4000)+`"}`+"\n"), 131)...))
				kept = []string{"full"}
			}
			base := h.Clone()
			h.Record()
			add("a" + strings.Repeat("a", 1000))
			add("b" + strings.Repeat("b", 1000))
			r := crash.Recording{Base: base, Events: h.Events()}
			states := 0
			require.NoError(t, r.Each(1, func(s *crash.State) error {
				states++
				host, err := s.Host()
				require.NoError(t, err)
				after := ops.NewOpLog(host.Dir("/vms"), false)
				want := append([]string{}, kept...)
				for _, e := range r.Events[:s.At] {
					if e.Op == sim.OpAck {
						want = append(want, e.Label)
					}
				}
				have := short(lines(t, after))
				require.True(t, contains(have, short(want)), "%v in %v: %s", short(want), have, s)
				require.NoError(t, after.Add(entry("next"), true))
				again := short(lines(t, after))
				require.Equal(t, "next", again[len(again)-1])
				require.True(t, contains(again, short(want)), "%s", s)
				return nil
			}))
			require.Greater(t, states, 20)
		})
	}
}

// short drops the lines that fill a log, and all but the first letters of others.
func short(list []string) []string {
	out := []string{}
	for _, s := range list {
		if s = s[:min(4, len(s))]; s != "xxxx" {
			out = append(out, s)
		}
	}
	return out
}

// contains tells whether list holds all of want, in order.
func contains(list, want []string) bool {
	for _, s := range list {
		if len(want) > 0 && s == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

// Programs that work in one folder share its log.
func TestLogOfManyPrograms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sim.New()
		done := make(chan error)
		for i := range 8 {
			go func() {
				l := ops.NewOpLog(h.Dir("/vms"), false)
				var err error
				for n := range 50 {
					err = errors.Join(err, l.Add(entry(fmt.Sprintf("%d %02d %s", i, n, strings.Repeat("x", 3000))), true))
				}
				done <- err
			}()
		}
		for range 8 {
			require.NoError(t, <-done)
		}
		next := [8]int{}
		for _, s := range lines(t, ops.NewOpLog(h.Dir("/vms"), true)) {
			var i, n int
			_, err := fmt.Sscanf(s, "%d %d", &i, &n)
			require.NoError(t, err)
			require.GreaterOrEqual(t, n, next[i], "in order")
			next[i] = n + 1
		}
		require.Equal(t, [8]int{50, 50, 50, 50, 50, 50, 50, 50}, next)
	})
}

// Where another program holds the log for long, a line waits in memory.
func TestLogThatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := sim.New()
		l := ops.NewOpLog(h.Dir("/vms"), false)
		require.NoError(t, l.Add(entry("one"), true))
		f, err := h.Dir("/vms").Open(".vhdfs-state/log", ops.Write)
		require.NoError(t, err)
		require.NoError(t, f.Lock(true))
		began := time.Now()
		require.ErrorIs(t, l.Add(entry("two"), true), ops.ErrBusy)
		require.Less(t, time.Since(began), 2*time.Second)
		require.NoError(t, f.Close())
		require.NoError(t, l.Add(entry("three"), false))
		require.Equal(t, []string{"one", "two", "three"}, lines(t, l))
	})
}

// A file that another program moved away between open and lock is not written.
func TestLogThatIsMovedAway(t *testing.T) {
	h := sim.New()
	a, b := ops.NewOpLog(h.Dir("/vms"), false), ops.NewOpLog(h.Dir("/vms"), false)
	h.Put(logFile, bytes.Repeat([]byte(`{"Request":"`+strings.Repeat("x", 4000)+`"}`+"\n"), 131))
	armed := true
	h.SetFault(func(c sim.Call) error {
		if armed && c.Op == sim.OpLock {
			armed = false
			require.NoError(t, b.Add(entry("b"), true))
		}
		return nil
	})
	require.NoError(t, a.Add(entry("a"), true))
	old, err := h.ReadFile(logFile + ".1")
	require.NoError(t, err)
	require.Equal(t, 131, bytes.Count(old, []byte("\n")))
	require.Equal(t, []string{"b", "a"}, short(lines(t, a)))
}

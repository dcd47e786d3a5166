package folder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
)

// childEnv names the folder that a child process is to look at.
const childEnv = "VHDFS_TEST_LOOK_AT"

// childCache is the budget for table pages in a child, so that what is measured
// is not how far a larger cache was filled.
const childCache = 16 << 20

// Report is what a child process says of its images.
type Report struct {
	Images map[string]Outcome
	Extra  int64 // bytes of memory at most held at once, beyond what it started with
}

// Outcome is what one image gave.
type Outcome struct {
	Err   string // why it did not open, "" when it did
	Errno string
	Size  int64
	Bad   int      // pieces that could not be read
	Notes []string // texts of anomalies and of the chain
}

// ChildMain does a child's work when this process is one: it looks at the named
// images, keeps all that open open together, and prints a [Report]. A program
// that wants children calls it first in its TestMain and ends when it is true.
func ChildMain() bool {
	dir := os.Getenv(childEnv)
	if dir == "" {
		return false
	}
	if err := lookAll(dir, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func lookAll(dir string, names []string) error {
	d, err := host.OpenDir(dir)
	if err != nil {
		return err
	}
	before, err := memory("VmRSS")
	if err != nil {
		return err
	}
	l := ops.NewLibrary(ops.LibraryOptions{Top: d, Formats: Formats(), Cache: ops.NewCache(childCache)})
	r := Report{Images: map[string]Outcome{}}
	handles := map[string]*ops.Handle{}
	sights := map[string]*Sight{}
	for _, name := range names {
		s, h := See(l, name)
		sights[name] = s
		if h != nil {
			handles[name] = h
		}
	}
	for name, s := range sights {
		if h := handles[name]; h != nil {
			if err := s.Read(h); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		r.Images[name] = s.outcome()
	}
	peak, err := memory("VmHWM")
	if err != nil {
		return err
	}
	r.Extra = peak - before
	return errors.Join(l.Close(), d.Close(), json.NewEncoder(os.Stdout).Encode(r))
}

func (s *Sight) outcome() Outcome {
	o := Outcome{Err: ops.Sentence(s.Err), Errno: ops.Errno(s.Err), Size: s.Size, Bad: len(s.Bad)}
	if s.Found != nil {
		o.Notes = append(o.Notes, s.Found.Info.Creator, s.Found.Info.ReadOnly, s.Found.Info.Label)
		for _, a := range s.Found.Info.Anomalies {
			o.Notes = append(o.Notes, a.Where+": "+a.Text)
		}
	}
	for _, link := range s.Chain {
		o.Notes = append(o.Notes, link.Ref.Path(), ops.Sentence(link.Err))
		for _, c := range link.Passed {
			o.Notes = append(o.Notes, fmt.Sprintf("%s: %s (%s)", c.Path, c.Why, c.ID))
		}
		o.Notes = append(o.Notes, link.Warnings...)
	}
	return o
}

// memory is a line of this process's status, in bytes.
func memory(field string) (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no " + field + " in /proc/self/status")
}

// LookInChild looks at images of a folder in a process of its own, started by
// wrapper (such as strace with its options; none: directly). It also answers
// all that the process wrote.
func LookInChild(t testing.TB, dir string, names []string, wrapper ...string) (Report, []byte) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	args := append(append(wrapper, self), names...)
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(t, cmd.Run(), "%s", errs.Bytes())
	var r Report
	require.NoError(t, json.Unmarshal(out.Bytes(), &r), "%s", out.Bytes())
	t.Logf("%d images, %d KiB of memory more than at the start", len(names), r.Extra>>10)
	return r, append(out.Bytes(), errs.Bytes()...)
}

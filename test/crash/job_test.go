package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/test/sim"
)

const jobBytes = "new content"

// replace puts a new file beside an old one and renames it to a second name, as
// operations that make images do.
func replace(h *sim.Host) error {
	d := h.Dir("/vms")
	f, err := d.Create("tmp", 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(jobBytes), 0)
	if err == nil {
		err = f.Sync("job.file")
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.Rename("tmp", "b"); err != nil {
		return err
	}
	return d.Sync(".", "job.name")
}

// whole asks that the second name is there once the job is done, and whole where
// it is there; it takes the temporary file away.
func whole(h *sim.Host, done bool) error {
	d := h.Dir("/vms")
	if _, err := d.Stat("tmp"); err == nil {
		if err := errors.Join(d.Remove("tmp"), d.Sync(".", "job.swept")); err != nil {
			return err
		}
	}
	b, err := h.ReadFile("/vms/b")
	switch {
	case errors.Is(err, fs.ErrNotExist) && !done:
		return nil
	case err != nil:
		return err
	case string(b) != jobBytes:
		return fmt.Errorf("b holds %q", b)
	}
	return nil
}

func TestJob(t *testing.T) {
	start := sim.New()
	start.Put("/vms/a", []byte("old"))
	job := Job{Do: replace, Judge: whole}
	n, err := job.Run(start, Options{Deep: 1})
	require.NoError(t, err)
	require.Greater(t, n.States, 5)
	require.Positive(t, n.Deep, "no recovery was cut")
	for _, label := range []string{"job.file", "job.name"} {
		_, err := job.Run(start, Options{}, label)
		var v *Violation
		require.ErrorAs(t, err, &v, label)
	}

	job.Do = func(h *sim.Host) error { return h.Dir("/vms").Rename("none", "b") }
	_, err = job.Run(start, Options{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	job = Job{Do: replace, Judge: func(*sim.Host, bool) error { panic("judge") }}
	_, err = job.Run(start, Options{})
	require.ErrorContains(t, err, "panic: judge")
}

// A recovery that is not safe itself is seen.
func TestJobCutsRecoveries(t *testing.T) {
	start := sim.New()
	start.Put("/vms/a", []byte("old"))
	rewrite := func(h *sim.Host, _ bool) error {
		f, err := h.Dir("/vms").Open("a", ops.Write)
		if err != nil {
			return err
		}
		defer f.Close()
		var b [3]byte
		if _, err := f.ReadAt(b[:], 0); err != nil || string(b[:]) != "old" {
			return fmt.Errorf("a holds %q: %w", b, err)
		}
		_, err = f.WriteAt([]byte("now"), 0)
		return err
	}
	_, err := Job{Do: replace, Judge: rewrite}.Run(start, Options{})
	require.NoError(t, err)
	_, err = Job{Do: replace, Judge: rewrite}.Run(start, Options{Deep: 1})
	var v *Violation
	require.ErrorAs(t, err, &v)
	require.Equal(t, 2, v.Depth)
}

// An image as it stands is a start like any other.
func TestStart(t *testing.T) {
	s, p := toySubject(t, "")
	p, err := s.Start(p.Host)
	require.NoError(t, err)
	n, err := s.Cut(p, Sequence{Steps[0], Steps[9], Steps[3]}, Options{Deep: 20})
	require.NoError(t, err)
	require.Greater(t, n.States, 20)
	_, err = s.Cut(p, Sequence{Steps[0], Steps[9], Steps[3]}, Options{}, "toy.log")
	require.Error(t, err)
}

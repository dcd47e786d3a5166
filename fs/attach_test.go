package fs

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"vhdfs/ops"
	"vhdfs/ops/host"
)

// A service ends when nothing is attached and no job runs; as long as it goes on for
// either, images can be attached.
func TestAServiceEndsWhenItIsEmpty(t *testing.T) {
	top := t.TempDir()
	flatFile(t, filepath.Join(top, "a.flat"), "a", mib)
	dir, err := host.OpenDir(top)
	require.NoError(t, err)
	lib := ops.NewLibrary(ops.LibraryOptions{Top: dir, Formats: []*ops.Format{new(knobs).format()}})
	defer func() { require.NoError(t, lib.Close()) }()
	m := newMount(Options{Library: lib, Log: logrus.New()})
	m.jobs = ops.NewJobs(t.Context(), nil)
	m.attacher = ops.NewAttacher(lib, devices{host.Loops{}, m}, false)
	s := &Server{m: m}
	image := lib.Top("a.flat")
	attach := func() error {
		_, _, _, err := m.attacher.Attach(image, ops.AttachTerms{Way: ops.WayNone})
		return err
	}
	detach := func() {
		_, found, err := m.attacher.Detach(image, false)
		require.NoError(t, err)
		require.True(t, found)
		<-s.Emptied()
	}

	require.NoError(t, attach())
	attached, err := s.StopEmpty()
	require.ErrorIs(t, err, ops.ErrBusy)
	require.True(t, attached)
	detach()

	end := make(chan struct{})
	job, err := m.jobs.Start(t.Context(), ops.JobRequest{
		Op:      &ops.Op{Name: "wait", Run: func(context.Context, *ops.Request) (ops.Fields, error) { <-end; return nil, nil }},
		Request: &ops.Request{Library: lib, Image: image},
	})
	require.NoError(t, err)
	attached, err = s.StopEmpty()
	require.ErrorIs(t, err, ops.ErrBusy)
	require.ErrorContains(t, err, "job 1, wait, runs")
	require.False(t, attached)
	require.NoError(t, attach(), "it goes on")
	detach()
	close(end)
	<-job.Done()

	_, err = s.StopEmpty()
	require.NoError(t, err)
	<-s.Stopped()
	require.ErrorIs(t, attach(), ops.ErrBusy)
}

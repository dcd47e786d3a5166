package main

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// server is one whose flush ends when the test says so.
type server struct {
	flushed  chan error
	detached bool
}

func (s *server) Shutdown() error { return <-s.flushed }
func (s *server) Detach() error   { s.detached = true; return nil }

func TestShutdownWaitsForTheFlush(t *testing.T) {
	noSpace := errors.New("no space")
	s := &server{flushed: make(chan error, 1)}
	s.flushed <- noSpace
	require.Equal(t, noSpace, shutdown(s, make(chan os.Signal)))
	require.False(t, s.detached)
}

func TestASecondSignalDoesNotWaitForTheFlush(t *testing.T) {
	s := &server{flushed: make(chan error)}
	t.Cleanup(func() { s.flushed <- nil })
	signals := make(chan os.Signal, 1)
	signals <- unix.SIGTERM
	require.ErrorIs(t, shutdown(s, signals), errForced)
	require.True(t, s.detached)
}

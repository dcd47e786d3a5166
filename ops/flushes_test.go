package ops

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Those that come while a flush runs share the next one, which begins after it.
func TestFlushesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flushes
		runs, failed := 0, errors.New("second run")
		goOn := make(chan struct{})
		flush := func() error {
			runs++
			n := runs
			<-goOn
			if n == 2 {
				return failed
			}
			return nil
		}
		results := make(chan error, 20)
		start := func(n int) {
			for range n {
				go func() { results <- s.do(flush) }()
			}
			synctest.Wait()
		}
		start(1)
		require.Equal(t, 1, runs)
		start(8)
		require.Equal(t, 1, runs, "they wait for the one under way")
		goOn <- struct{}{}
		synctest.Wait()
		require.Equal(t, 2, runs)
		require.NoError(t, <-results)
		require.Empty(t, results, "a run that began before a call does not answer it")
		start(3)
		goOn <- struct{}{}
		synctest.Wait()
		require.Equal(t, 3, runs)
		for range 8 {
			require.ErrorIs(t, <-results, failed)
		}
		require.Empty(t, results)
		goOn <- struct{}{}
		synctest.Wait()
		for range 3 {
			require.NoError(t, <-results)
		}
		start(1)
		require.Equal(t, 4, runs)
		goOn <- struct{}{}
		require.NoError(t, <-results)
	})
}

// A run that panics does not leave the others waiting.
func TestFlushesSurvivePanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flushes
		goOn := make(chan struct{})
		results := make(chan any, 3)
		run := func() {
			defer func() { results <- recover() }()
			_ = s.do(func() error { <-goOn; panic("boom") })
		}
		go run()
		synctest.Wait()
		go run()
		synctest.Wait()
		goOn <- struct{}{}
		require.Equal(t, "boom", <-results)
		goOn <- struct{}{}
		require.Equal(t, "boom", <-results)
		require.NoError(t, s.do(func() error { return nil }))
	})
}
